#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/threshold.hpp"

namespace deploy::bindings {
namespace {

// threshold(counts) without the GIL.
template <typename Threshold>
double of_counts(py::handle counts, const Threshold& threshold) {
    const auto owned = read<std::uint64_t>(counts, "counts", 1);
    const py::gil_scoped_release release;
    return threshold(owned.span());
}

double entropy(const py::object& counts, double bin_width, std::size_t levels) {
    return of_counts(counts, [&](auto span) { return entropy_threshold(span, bin_width, levels); });
}

double percentile_of(const py::object& counts, double bin_width, double percentile) {
    return of_counts(counts, [&](auto span) { return percentile_threshold(span, bin_width, percentile); });
}

double mse(const py::object& counts, double bin_width, std::size_t levels) {
    return of_counts(counts, [&](auto span) { return mse_threshold(span, bin_width, levels); });
}

}  // namespace

void bind_threshold(py::module_& module) {
    module.def("entropy_threshold", &entropy, py::arg("counts"), py::arg("bin_width"), py::arg("levels") = 128,
               "The clipping threshold that loses the least information (KL divergence).");
    module.def("percentile_threshold", &percentile_of, py::arg("counts"), py::arg("bin_width"), py::arg("percentile"),
               "The smallest bin edge that `percentile` percent of the counts lie below.");
    module.def("mse_threshold", &mse, py::arg("counts"), py::arg("bin_width"), py::arg("levels") = 127,
               "The clipping threshold with the smallest squared rounding and clipping error.");
}

}  // namespace deploy::bindings
