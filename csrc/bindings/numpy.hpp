#pragma once

// Include this first: it is the only place that includes pybind11's array support and the only place that turns
// arrays into spans and values into arrays. Functions here need the GIL.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace deploy::bindings {

namespace py = pybind11;

// Our classes have no static properties, for which pybind11 gives classes a metaclass that type checkers cannot see.
inline py::metaclass plain_type() {
    return py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type));
}

// Used with py::arg().noconvert(): another dtype or a strided view is refused instead of silently copied.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// All items of an array of any rank.
template <typename T>
std::span<const T> span_of(const Array<T>& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}

// What a message is about: text, or a function that makes it, so that thousands of arrays cost no text each.
template <typename What>
std::string text_of(const What& what) {
    if constexpr (std::is_invocable_v<What>) {
        return what();
    } else {
        return what;
    }
}

// `object` as a one-dimensional span, for arrays inside lists, where noconvert() does not reach.
// Valid while `object` lives. Throws py::type_error.
template <typename T, typename What>
std::span<const T> list_of(py::handle object, const What& what) {
    if (!py::isinstance<Array<T>>(object) || py::reinterpret_borrow<py::array>(object).ndim() != 1) {
        throw py::type_error(text_of(what) + " must be a contiguous one-dimensional array of " +
                             py::cast<std::string>(py::str(py::dtype::of<T>())));
    }
    return span_of(py::reinterpret_borrow<Array<T>>(object));
}

inline std::vector<std::size_t> shape_of(const py::array& array) {
    return {array.shape(), array.shape() + array.ndim()};
}

// The bytes of an array that holds plain values. Throws py::type_error or py::value_error.
template <typename What>
std::span<const std::byte> bytes_of(const py::array& array, const What& what) {
    if (array.dtype().attr("hasobject").cast<bool>()) {
        throw py::type_error(text_of(what) + " holds Python objects; expected numbers");
    }
    if (!(array.flags() & py::array::c_style)) {
        throw py::value_error(text_of(what) + " must be C-contiguous; pass numpy.ascontiguousarray(...)");
    }
    return {static_cast<const std::byte*>(array.data()), static_cast<std::size_t>(array.nbytes())};
}

inline std::span<std::byte> writable_bytes_of(py::array& array) {
    return {static_cast<std::byte*>(array.mutable_data()), static_cast<std::size_t>(array.nbytes())};
}

// A new one-dimensional array with a copy of `values`.
template <typename T>
py::array_t<T> array_of(std::span<const T> values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace deploy::bindings
