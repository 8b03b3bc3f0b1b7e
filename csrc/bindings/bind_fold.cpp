#include "bindings/numpy.hpp"
//
#include <optional>

#include "bindings/bind.hpp"
#include "core/fold.hpp"
#include "core/mask.hpp"
#include "core/sizes.hpp"

namespace deploy::bindings {
namespace {

template <typename T>
py::array_t<double> shift(const py::object& weight, const py::object& means, std::size_t groups, int threads) {
    const auto rows = read<T>(weight, "weight");
    const auto constants = read<double>(means, "means");
    if (rows.shape().size() < 2) {
        throw py::value_error("the weight needs the axes (outputs, inputs, ...)");
    }
    if (product({rows.shape()[1], groups}) != constants.span().size()) {
        throw py::value_error(std::to_string(constants.span().size()) + " means contradict " +
                              std::to_string(rows.shape()[1]) + " inputs in each of " + std::to_string(groups) +
                              " groups");
    }
    std::vector<double> result;
    {
        const py::gil_scoped_release release;
        result = input_shift<T>(rows.span(), constants.span(), rows.shape()[0], groups, threads);
    }
    return array_of<double>(result);
}

py::array_t<double> shift_any(const py::object& weight, const py::object& means, std::size_t groups, int threads) {
    return for_floats(weight, "weight", [&]<typename T>(T) { return shift<T>(weight, means, groups, threads); });
}

// One value a channel, or None: an empty span.
template <typename T>
class Channels {
  public:
    Channels(const py::object& object, const char* what, std::size_t channels) {
        if (object.is_none()) {
            return;
        }
        owned_.emplace(read<T>(object, what));
        if (span().size() != channels) {
            throw py::value_error("expected " + std::to_string(channels) + " values in " + what + ", got " +
                                  std::to_string(span().size()));
        }
    }

    std::span<const T> span() const { return owned_ ? owned_->span() : std::span<const T>{}; }

  private:
    std::optional<Owned<T>> owned_;
};

template <typename T>
py::tuple fold(const py::object& weight, const py::object& bias, const py::object& gamma, const py::object& beta,
               const py::object& mean, const py::object& variance, double epsilon, std::size_t outer) {
    const auto rows = read<T>(weight, "weight");
    const auto means = read<T>(mean, "mean");
    const auto variances = read<T>(variance, "variance");
    const std::size_t channels = means.span().size();
    const Channels<T> before(bias, "bias", channels);
    const Channels<T> scales(gamma, "gamma", channels);
    const Channels<T> shifts(beta, "beta", channels);
    py::array_t<T> new_weight(rows.shape());
    py::array_t<T> new_bias(means.shape());
    const BatchNorm<T> norm{scales.span(), shifts.span(), means.span(), variances.span(), epsilon};
    const std::span<T> target_weight = writable(new_weight);
    const std::span<T> target_bias = writable(new_bias);
    {
        const py::gil_scoped_release release;
        fold_batch_norm<T>(rows.span(), before.span(), norm, outer, target_weight, target_bias);
    }
    return py::make_tuple(new_weight, new_bias);
}

py::tuple fold_any(const py::object& weight, const py::object& bias, const py::object& gamma, const py::object& beta,
                   const py::object& mean, const py::object& variance, double epsilon, std::size_t outer) {
    return for_floats(weight, "weight", [&]<typename T>(T) {
        return fold<T>(weight, bias, gamma, beta, mean, variance, epsilon, outer);
    });
}

template <typename T>
py::array_t<std::uint8_t> largest(const py::object& object, std::size_t n, std::size_t m, std::size_t axis,
                                  int threads) {
    const auto values = read<T>(object, "values");
    const std::vector<std::size_t>& shape = values.shape();
    if (axis >= shape.size()) {
        throw py::value_error("axis " + std::to_string(axis) + " is outside 0.." + std::to_string(shape.size()) +
                              " (exclusive)");
    }
    const std::size_t inner = product(std::span(shape).subspan(axis + 1));
    py::array_t<std::uint8_t> mask(shape);
    const std::span<std::uint8_t> target = writable(mask);
    {
        const py::gil_scoped_release release;
        keep_largest<T>(values.span(), shape[axis], inner, n, m, target, threads);
    }
    return mask;
}

py::array_t<std::uint8_t> largest_any(const py::object& values, std::size_t n, std::size_t m, std::size_t axis,
                                      int threads) {
    return for_floats(values, "values", [&]<typename T>(T) { return largest<T>(values, n, m, axis, threads); });
}

}  // namespace

void bind_fold(py::module_& module) {
    module.def("input_shift", &shift_any, py::arg("weight"), py::arg("means"), py::arg("groups") = 1,
               py::arg("threads") = 0, "What constant inputs add to each output of a layer.");
    module.def("fold_batch_norm", &fold_any, py::arg("weight"), py::arg("bias"), py::arg("gamma"), py::arg("beta"),
               py::arg("mean"), py::arg("variance"), py::arg("epsilon"), py::arg("outer") = 1,
               "Weight and bias of a layer with the batch norm after it folded in.");
    module.def("keep_largest", &largest_any, py::arg("values"), py::arg("n"), py::arg("m"), py::arg("axis"),
               py::arg("threads") = 0, "1 for the n largest magnitudes in every run of m along the axis, else 0.");
}

}  // namespace deploy::bindings
