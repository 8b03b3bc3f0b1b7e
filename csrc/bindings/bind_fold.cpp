#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/fold.hpp"
#include "core/mask.hpp"

namespace deploy::bindings {
namespace {

template <typename T>
std::vector<py::ssize_t> shape_like(const Array<T>& array) {
    return {array.shape(), array.shape() + array.ndim()};
}

template <typename T>
std::span<T> writable(py::array_t<T>& array) {
    return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

template <typename T>
std::span<const T> span_or_empty(const std::optional<Array<T>>& array) {
    return array ? span_of(*array) : std::span<const T>{};
}

template <typename T>
py::array_t<double> shift(const Array<T>& weight, const Array<double>& means, std::size_t groups, int threads) {
    if (weight.ndim() < 2) {
        throw py::value_error("the weight needs the axes (outputs, inputs, ...)");
    }
    if (static_cast<std::size_t>(weight.shape(1)) * groups != static_cast<std::size_t>(means.size())) {
        throw py::value_error(std::to_string(means.size()) + " means contradict " + std::to_string(weight.shape(1)) +
                              " inputs in each of " + std::to_string(groups) + " groups");
    }
    const auto outputs = static_cast<std::size_t>(weight.shape(0));
    std::vector<double> result;
    {
        const py::gil_scoped_release release;
        result = input_shift<T>(span_of(weight), span_of(means), outputs, groups, threads);
    }
    return array_of<double>(result);
}

template <typename T>
py::tuple fold(const Array<T>& weight, const std::optional<Array<T>>& bias, const std::optional<Array<T>>& gamma,
               const std::optional<Array<T>>& beta, const Array<T>& mean, const Array<T>& variance, double epsilon,
               std::size_t outer) {
    py::array_t<T> new_weight(shape_like(weight));
    py::array_t<T> new_bias(shape_like(mean));
    const BatchNorm<T> norm{span_or_empty(gamma), span_or_empty(beta), span_of(mean), span_of(variance), epsilon};
    const std::span<T> target_weight = writable(new_weight);
    const std::span<T> target_bias = writable(new_bias);
    {
        const py::gil_scoped_release release;
        fold_batch_norm<T>(span_of(weight), span_or_empty(bias), norm, outer, target_weight, target_bias);
    }
    return py::make_tuple(new_weight, new_bias);
}

template <typename T>
py::array_t<std::uint8_t> largest(const Array<T>& values, std::size_t n, std::size_t m, std::size_t axis, int threads) {
    if (axis >= static_cast<std::size_t>(values.ndim())) {
        throw py::value_error("axis " + std::to_string(axis) + " is outside 0.." + std::to_string(values.ndim()) +
                              " (exclusive)");
    }
    py::array_t<std::uint8_t> mask(shape_like(values));
    std::size_t inner = 1;
    for (auto dim = static_cast<py::ssize_t>(axis) + 1; dim < values.ndim(); ++dim) {
        inner *= static_cast<std::size_t>(values.shape(dim));
    }
    const auto size = static_cast<std::size_t>(values.shape(static_cast<py::ssize_t>(axis)));
    const std::span<std::uint8_t> target = writable(mask);
    {
        const py::gil_scoped_release release;
        keep_largest<T>(span_of(values), size, inner, n, m, target, threads);
    }
    return mask;
}

template <typename T>
void bind_type(py::module_& module) {
    module.def("input_shift", &shift<T>, py::arg("weight").noconvert(), py::arg("means").noconvert(),
               py::arg("groups") = 1, py::arg("threads") = 0, "What constant inputs add to each output of a layer.");
    module.def("fold_batch_norm", &fold<T>, py::arg("weight").noconvert(), py::arg("bias").noconvert(),
               py::arg("gamma").noconvert(), py::arg("beta").noconvert(), py::arg("mean").noconvert(),
               py::arg("variance").noconvert(), py::arg("epsilon"), py::arg("outer") = 1,
               "Weight and bias of a layer with the batch norm after it folded in.");
    module.def("keep_largest", &largest<T>, py::arg("values").noconvert(), py::arg("n"), py::arg("m"), py::arg("axis"),
               py::arg("threads") = 0, "1 for the n largest magnitudes in every run of m along the axis, else 0.");
}

}  // namespace

void bind_fold(py::module_& module) {
    bind_type<float>(module);
    bind_type<double>(module);
}

}  // namespace deploy::bindings
