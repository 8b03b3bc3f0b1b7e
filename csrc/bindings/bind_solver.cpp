#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/solver.hpp"

namespace deploy::bindings {
namespace {

using Scopes = std::vector<std::vector<std::size_t>>;
using Costs = std::vector<Array<double>>;

std::vector<CostTable> read_tables(const Scopes& scopes, const Costs& costs) {
    if (scopes.size() != costs.size()) {
        throw py::value_error("expected one scope for each cost, got " + std::to_string(scopes.size()) + " and " +
                              std::to_string(costs.size()));
    }
    std::vector<CostTable> tables;
    for (std::size_t i = 0; i < costs.size(); ++i) {
        tables.push_back({scopes[i], shape_of(costs[i]), span_of(costs[i])});
    }
    return tables;
}

Costs read_costs(const py::sequence& costs) {
    Costs result;
    for (const py::handle cost : costs) {
        if (!py::isinstance<Array<double>>(cost)) {
            throw py::type_error("cost " + std::to_string(result.size()) + " must be a C-contiguous array of float64");
        }
        result.push_back(py::reinterpret_borrow<Array<double>>(cost));
    }
    return result;
}

Solution solve_arrays(const py::sequence& values, const Scopes& scopes, const py::sequence& costs, double budget,
                      double tolerance, double seconds) {
    std::vector<std::vector<double>> options;
    for (const py::handle value : values) {
        const auto span = list_of<double>(value, "the values of variable " + std::to_string(options.size()));
        options.emplace_back(span.begin(), span.end());
    }
    const Costs owners = read_costs(costs);
    const std::vector<CostTable> tables = read_tables(scopes, owners);
    const py::gil_scoped_release release;
    return solve(options, tables, {budget, tolerance, seconds});
}

py::tuple cheapest_arrays(const Scopes& scopes, const py::sequence& costs, const std::vector<std::size_t>& sizes) {
    const Costs owners = read_costs(costs);
    const std::vector<CostTable> tables = read_tables(scopes, owners);
    Solution solution;
    {
        const py::gil_scoped_release release;
        solution = minimum_cost(sizes, tables);
    }
    return py::make_tuple(solution.cost, array_of<std::int64_t>(solution.choice));
}

}  // namespace

void bind_solver(py::module_& module) {
    py::class_<Solution>(module, "Solution", plain_type(), py::is_final(),
                         "One option per variable, and how good that is proven to be.")
        .def(py::init([](const Array<std::int64_t>& choice, double value, double cost, double bound) {
                 const auto span = list_of<std::int64_t>(choice, "choice");
                 return Solution{{span.begin(), span.end()}, value, cost, bound};
             }),
             py::arg("choice").noconvert(), py::arg("value"), py::arg("cost"), py::arg("bound"))
        .def_property_readonly("choice", [](const Solution& self) { return array_of<std::int64_t>(self.choice); })
        .def_readonly("value", &Solution::value)
        .def_readonly("cost", &Solution::cost)
        .def_readonly("bound", &Solution::bound);
    module.def("solve", &solve_arrays, py::arg("values"), py::arg("scopes"), py::arg("costs"), py::arg("budget"),
               py::arg("tolerance") = 0.0, py::arg("seconds") = 10.0,
               "The options with the largest sum of values whose costs sum to at most the budget.");
    module.def("minimum_cost", &cheapest_arrays, py::arg("scopes"), py::arg("costs"), py::arg("sizes"),
               "The smallest possible sum of costs, and the options that attain it.");
}

}  // namespace deploy::bindings
