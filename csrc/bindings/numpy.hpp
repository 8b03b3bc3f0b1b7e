#pragma once

// Include this first: it is the only place that includes pybind11's array support and the only place that turns
// arrays into spans and values into arrays. Functions here, and the destructor of Owned, need the GIL.
//
// Every argument that holds arrays comes as a Python object and is read here, which gives one message for whatever is
// wrong with it. What is read is held: other threads may change a list or let go of an array while the GIL is
// released, and generators and sequences may make items that live only as long as somebody holds them.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace deploy::bindings {

namespace py = pybind11;

// Our classes have no static properties, for which pybind11 gives classes a metaclass that type checkers cannot see.
inline py::metaclass plain_type() {
    return py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type));
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

inline std::string name_of(py::handle type_or_dtype) {
    return py::cast<std::string>(py::str(type_or_dtype));
}

// What something looks like, in a message: no more than a line of it.
inline std::string short_text(py::handle object) {
    std::string text = py::cast<std::string>(py::repr(object));
    constexpr std::size_t longest = 80;
    return text.size() <= longest ? text : text.substr(0, longest) + "...";
}

// The items of any iterable, as a tuple of its own. Throws py::type_error.
template <typename What>
py::tuple items_of(py::handle iterable, const What& what) {
    if (!py::isinstance<py::iterable>(iterable)) {
        throw py::type_error(text_of(what) + " must be a sequence, not " + name_of(py::type::of(iterable)));
    }
    return py::tuple(py::reinterpret_borrow<py::object>(iterable));
}

// The same of an iterable with `size` items, which `expected` describes. Throws py::type_error.
template <typename What>
py::tuple items_of(py::handle object, const What& what, std::size_t size, const char* expected) {
    if (py::isinstance<py::iterable>(object)) {
        py::tuple items(py::reinterpret_borrow<py::object>(object));
        if (items.size() == size) {
            return items;
        }
    }
    throw py::type_error(text_of(what) + " must be " + expected);
}

// A number of Python's or NumPy's; fractions are no whole numbers. Throws py::type_error.
template <typename T, typename What>
T number_of(py::handle object, const What& what) {
    try {
        if constexpr (std::is_floating_point_v<T>) {
            return object.cast<T>();
        } else if (const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()))) {
            return index.cast<T>();
        }
        PyErr_Clear();
    } catch (const py::cast_error&) {
        // Text, or a number that T cannot hold.
    }
    const char* const expected = std::is_floating_point_v<T> ? " must be a number, not "
                                 : std::is_unsigned_v<T>     ? " must be a whole number of at least 0, not "
                                                             : " must be a whole number, not ";
    throw py::type_error(text_of(what) + expected + short_text(object));
}

template <typename T, typename What>
std::vector<T> numbers_of(py::handle iterable, const What& what) {
    std::vector<T> result;
    for (const py::handle item : items_of(iterable, what)) {
        result.push_back(number_of<T>(item, [&] { return "every one of " + text_of(what); }));
    }
    return result;
}

inline std::vector<std::size_t> shape_of(const py::array& array) {
    return {array.shape(), array.shape() + array.ndim()};
}

inline bool is_contiguous(const py::array& array) {
    return (array.flags() & py::array::c_style) != 0;
}

// An array and the span of its items, together: whoever has the span keeps the memory.
template <typename T>
class Owned {
  public:
    // `array` must hold contiguous items of T's size. Where they are not aligned for T, which NumPy permits, they are
    // copied.
    explicit Owned(const py::array& array) : array_(array), shape_(shape_of(array)) {
        const auto bytes = static_cast<std::size_t>(array.nbytes());
        const void* data = array.data();
        if (reinterpret_cast<std::uintptr_t>(data) % alignof(T) != 0) {
            py::array_t<std::uint8_t> copy(array.nbytes());
            std::memcpy(copy.mutable_data(), data, bytes);
            data = copy.data();
            array_ = std::move(copy);
        }
        span_ = {static_cast<const T*>(data), bytes / sizeof(T)};
    }

    std::span<const T> span() const { return span_; }
    const std::vector<std::size_t>& shape() const { return shape_; }

  private:
    py::array array_;
    std::vector<std::size_t> shape_;
    std::span<const T> span_;
};

constexpr int any_rank = -1;

// Why `object` is not what was expected.
template <typename What>
py::type_error refusal(py::handle object, const What& what, const std::string& dtype, int rank = any_rank) {
    static constexpr std::array ranks = {"zero-dimensional, ", "one-dimensional, ", "two-dimensional, ",
                                         "three-dimensional, "};
    std::string text = text_of(what) + " must be a " +
                       (rank == any_rank ? "" : ranks.at(static_cast<std::size_t>(rank))) + "C-contiguous " + dtype +
                       " array, got ";
    if (!py::isinstance<py::array>(object)) {
        return py::type_error(text + name_of(py::type::of(object)));
    }
    const auto array = py::reinterpret_borrow<py::array>(object);
    text += "one of " + name_of(array.dtype()) + ", " + std::to_string(array.ndim()) + "-dimensional";
    return py::type_error(text + (is_contiguous(array) ? "" : ", strided: pass numpy.ascontiguousarray(...)"));
}

template <typename T>
bool is_array_of(py::handle object) {
    return py::isinstance<py::array_t<T, 0>>(object);
}

// A contiguous array of T. Throws py::type_error: another dtype or a strided view is refused, not silently converted.
template <typename T, typename What>
Owned<T> read(py::handle object, const What& what, int rank = any_rank) {
    if (is_array_of<T>(object)) {
        const auto array = py::reinterpret_borrow<py::array>(object);
        if (is_contiguous(array) && (rank == any_rank || array.ndim() == rank)) {
            return Owned<T>(array);
        }
    }
    throw refusal(object, what, name_of(py::dtype::of<T>()), rank);
}

// The same as values that no other thread writes to: numbers that are checked and then relied upon.
template <typename T, typename What>
std::vector<T> copied(py::handle object, const What& what, int rank = 1) {
    const Owned<T> owned = read<T>(object, what, rank);
    return {owned.span().begin(), owned.span().end()};
}

// Throws py::type_error or py::value_error unless `object` is a contiguous array of plain values, of any dtype.
template <typename What>
py::array plain_array(py::handle object, const What& what) {
    if (!py::isinstance<py::array>(object)) {
        throw py::type_error(text_of(what) + " must be a NumPy array, not " + name_of(py::type::of(object)));
    }
    auto array = py::reinterpret_borrow<py::array>(object);
    if (array.dtype().attr("hasobject").cast<bool>()) {
        throw py::type_error(text_of(what) + " holds Python objects; expected numbers");
    }
    if (!is_contiguous(array)) {
        throw py::value_error(text_of(what) + " must be C-contiguous; pass numpy.ascontiguousarray(...)");
    }
    return array;
}

// action(T{}) for the dtype of `object`, float32 or float64. Throws py::type_error.
template <typename Action>
auto for_floats(py::handle object, const char* what, const Action& action) {
    if (is_array_of<float>(object)) {
        return action(float{});
    }
    if (is_array_of<double>(object)) {
        return action(double{});
    }
    throw refusal(object, what, "float32 or float64");
}

// The items of a new array.
template <typename T>
std::span<T> writable(py::array_t<T>& array) {
    return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

inline std::span<std::byte> writable_bytes(py::array& array) {
    return {static_cast<std::byte*>(array.mutable_data()), static_cast<std::size_t>(array.nbytes())};
}

// A new one-dimensional array with a copy of `values`.
template <typename T>
py::array_t<T> array_of(std::span<const T> values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Keeps Python objects, or what holds them, for code that lets go of them without the GIL.
template <typename T>
std::shared_ptr<const void> kept_alive(T objects) {
    return {new T(std::move(objects)), [](const T* pointer) {
                const py::gil_scoped_acquire acquire;
                delete pointer;
            }};
}

}  // namespace deploy::bindings
