#pragma once

#include <pybind11/pybind11.h>

namespace deploy::bindings {

void bind_batch(pybind11::module_& module);
void bind_fold(pybind11::module_& module);
void bind_histogram(pybind11::module_& module);
void bind_solver(pybind11::module_& module);
void bind_stats(pybind11::module_& module);
void bind_surgery(pybind11::module_& module);
void bind_threshold(pybind11::module_& module);

}  // namespace deploy::bindings
