#include <exception>
#include <new>
#include <stdexcept>

#include "bindings/bind.hpp"
#include "bindings/numpy.hpp"
#include "core/errors.hpp"

namespace {

namespace py = pybind11;

constexpr const char* no_memory = "there is not enough memory for what was asked of pydeploy's compiled part";

void translate(std::exception_ptr error) {
    try {
        if (error) {
            std::rethrow_exception(error);
        }
    } catch (const deploy::Infeasible& infeasible) {
        py::set_error(py::module_::import("pydeploy.errors").attr("Infeasible"), infeasible.what());
    } catch (const std::bad_alloc&) {
        py::set_error(PyExc_MemoryError, no_memory);
    } catch (const std::length_error&) {  // more than a vector could ever hold
        py::set_error(PyExc_MemoryError, no_memory);
    }
}

}  // namespace

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
    module.doc() = "Compiled inner loops: surgery, histograms, thresholds, the budget solver.";
    module.attr("__version__") = PYDEPLOY_VERSION;
    py::register_local_exception_translator(translate);
    deploy::bindings::bind_batch(module);
    deploy::bindings::bind_fold(module);
    deploy::bindings::bind_histogram(module);
    deploy::bindings::bind_solver(module);
    deploy::bindings::bind_stats(module);
    deploy::bindings::bind_surgery(module);
    deploy::bindings::bind_threshold(module);
}
