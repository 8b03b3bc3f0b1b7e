#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/solver.hpp"

namespace deploy::bindings {
namespace {

using Scopes = std::vector<std::vector<std::size_t>>;
using Decided = std::tuple<std::size_t, std::size_t, std::size_t, py::object>;

// Spans into arrays, and the arrays that own them.
struct Tables {
    std::vector<Array<double>> costs;
    std::vector<CostTable> tables;
    std::vector<Array<std::int64_t>> options;
    std::vector<Dependence> dependences;
};

Tables read_tables(const Scopes& scopes, const py::sequence& costs, const std::vector<Decided>& decided) {
    if (scopes.size() != costs.size()) {
        throw py::value_error("expected one scope for each cost, got " + std::to_string(scopes.size()) + " and " +
                              std::to_string(costs.size()));
    }
    Tables result;
    for (const py::handle cost : costs) {
        const std::size_t i = result.costs.size();
        if (!py::isinstance<Array<double>>(cost)) {
            throw py::type_error("cost " + std::to_string(i) + " must be a C-contiguous array of float64");
        }
        result.costs.push_back(py::reinterpret_borrow<Array<double>>(cost));
        result.tables.push_back({scopes[i], shape_of(result.costs[i]), span_of(result.costs[i])});
    }
    for (const auto& [variable, first, second, option] : decided) {
        const std::size_t i = result.options.size();
        if (!py::isinstance<Array<std::int64_t>>(option)) {
            throw py::type_error("the options of dependence " + std::to_string(i) +
                                 " must be a C-contiguous array of int64");
        }
        result.options.push_back(py::reinterpret_borrow<Array<std::int64_t>>(option));
        result.dependences.push_back(
            {variable, first, second, shape_of(result.options[i]), span_of(result.options[i])});
    }
    return result;
}

std::vector<Solution> solve_arrays(const py::sequence& values, const Scopes& scopes, const py::sequence& costs,
                                   const Array<double>& budgets, double tolerance, double seconds,
                                   const std::vector<Decided>& decided, int threads) {
    std::vector<std::vector<double>> options;
    for (const py::handle value : values) {
        const auto span = list_of<double>(value, "the values of variable " + std::to_string(options.size()));
        options.emplace_back(span.begin(), span.end());
    }
    const Tables input = read_tables(scopes, costs, decided);
    const std::span<const double> wanted = span_of(budgets);
    const py::gil_scoped_release release;
    return solve(options, input.tables, input.dependences, wanted, {tolerance, seconds, threads});
}

Solution solve_one(const py::sequence& values, const Scopes& scopes, const py::sequence& costs, double budget,
                   double tolerance, double seconds, const std::vector<Decided>& decided, int threads) {
    return solve_arrays(values, scopes, costs, Array<double>(1, &budget), tolerance, seconds, decided, threads).front();
}

py::tuple cheapest_arrays(const Scopes& scopes, const py::sequence& costs, const std::vector<std::size_t>& sizes,
                          const std::vector<Decided>& decided) {
    const Tables input = read_tables(scopes, costs, decided);
    Solution solution;
    {
        const py::gil_scoped_release release;
        solution = minimum_cost(sizes, input.tables, input.dependences);
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
    module.def("solve", &solve_one, py::arg("values"), py::arg("scopes"), py::arg("costs"), py::arg("budget"),
               py::arg("tolerance") = 0.0, py::arg("seconds") = 10.0, py::arg("decided") = std::vector<Decided>{},
               py::arg("threads") = 0,
               "The options with the largest sum of values whose costs sum to at most the budget.");
    module.def("solve_budgets", &solve_arrays, py::arg("values"), py::arg("scopes"), py::arg("costs"),
               py::arg("budgets").noconvert(), py::arg("tolerance") = 0.0, py::arg("seconds") = 10.0,
               py::arg("decided") = std::vector<Decided>{}, py::arg("threads") = 0,
               "A solution for each budget; what the budgets share is done once.");
    module.def("minimum_cost", &cheapest_arrays, py::arg("scopes"), py::arg("costs"), py::arg("sizes"),
               py::arg("decided") = std::vector<Decided>{},
               "The smallest possible sum of costs, and the options that attain it.");
}

}  // namespace deploy::bindings
