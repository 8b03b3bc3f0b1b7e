#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/threshold.hpp"

namespace deploy::bindings {
namespace {

std::span<const std::uint64_t> read_counts(const Array<std::uint64_t>& counts) {
    return list_of<std::uint64_t>(counts, "counts");
}

double entropy(const Array<std::uint64_t>& counts, double bin_width, std::size_t levels) {
    const auto span = read_counts(counts);
    const py::gil_scoped_release release;
    return entropy_threshold(span, bin_width, levels);
}

double percentile_of(const Array<std::uint64_t>& counts, double bin_width, double percentile) {
    const auto span = read_counts(counts);
    const py::gil_scoped_release release;
    return percentile_threshold(span, bin_width, percentile);
}

double mse(const Array<std::uint64_t>& counts, double bin_width, std::size_t levels) {
    const auto span = read_counts(counts);
    const py::gil_scoped_release release;
    return mse_threshold(span, bin_width, levels);
}

}  // namespace

void bind_threshold(py::module_& module) {
    module.def("entropy_threshold", &entropy, py::arg("counts").noconvert(), py::arg("bin_width"),
               py::arg("levels") = 128, "The clipping threshold that loses the least information (KL divergence).");
    module.def("percentile_threshold", &percentile_of, py::arg("counts").noconvert(), py::arg("bin_width"),
               py::arg("percentile"), "The smallest bin edge that `percentile` percent of the counts lie below.");
    module.def("mse_threshold", &mse, py::arg("counts").noconvert(), py::arg("bin_width"), py::arg("levels") = 127,
               "The clipping threshold with the smallest squared rounding and clipping error.");
}

}  // namespace deploy::bindings
