#include <pybind11/pybind11.h>

#include "bindings/bind.hpp"
#include "core/stats.hpp"

namespace deploy::bindings {

namespace py = pybind11;

void bind_stats(py::module_& module) {
    module.def("reference_kernel_us", &reference_kernel_us, py::arg("repeats"),
               py::call_guard<py::gil_scoped_release>(),
               "Wall time in microseconds of a fixed computation without memory traffic, `repeats` times.");
}

}  // namespace deploy::bindings
