#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/solver.hpp"

namespace deploy::bindings {
namespace {

using Scopes = std::vector<std::vector<std::size_t>>;
using Decided = std::tuple<std::size_t, std::size_t, std::size_t, py::object>;

// A table's values, copied, and its shape.
template <typename T>
struct Table {
    template <typename What>
    Table(py::handle object, const What& what) {
        const Owned<T> owned = read<T>(object, what);
        values.assign(owned.span().begin(), owned.span().end());
        shape = owned.shape();
    }

    std::vector<T> values;
    std::vector<std::size_t> shape;
};

// The tables, and what they point to. Not copied, as the pointers would stay with the original.
struct Input {
    Input() = default;
    Input(const Input&) = delete;
    Input& operator=(const Input&) = delete;

    std::vector<Table<double>> costs;
    std::vector<CostTable> tables;
    std::vector<Table<std::int64_t>> options;
    std::vector<Dependence> dependences;
};

void read_tables(Input& input, const Scopes& scopes, const py::object& costs, const std::vector<Decided>& decided) {
    for (const py::handle cost : items_of(costs, "costs")) {
        input.costs.emplace_back(cost, [&] { return "cost " + std::to_string(input.costs.size()); });
    }
    if (scopes.size() != input.costs.size()) {
        throw py::value_error("expected one scope for each cost, got " + std::to_string(scopes.size()) + " and " +
                              std::to_string(input.costs.size()));
    }
    for (std::size_t i = 0; i < scopes.size(); ++i) {
        input.tables.push_back({scopes[i], input.costs[i].shape, input.costs[i].values});
    }
    for (const auto& [variable, first, second, option] : decided) {
        input.options.emplace_back(option,
                                   [&] { return "the options of dependence " + std::to_string(input.options.size()); });
    }
    for (std::size_t i = 0; i < decided.size(); ++i) {
        const auto& [variable, first, second, option] = decided[i];
        input.dependences.push_back({variable, first, second, input.options[i].shape, input.options[i].values});
    }
}

std::vector<Solution> solve_all(const py::object& values, const Scopes& scopes, const py::object& costs,
                                const std::vector<double>& budgets, double tolerance, double seconds,
                                const std::vector<Decided>& decided, int threads) {
    std::vector<std::vector<double>> options;
    for (const py::handle value : items_of(values, "values")) {
        options.push_back(
            copied<double>(value, [&] { return "the values of variable " + std::to_string(options.size()); }));
    }
    Input input;
    read_tables(input, scopes, costs, decided);
    const py::gil_scoped_release release;
    return solve(options, input.tables, input.dependences, budgets, {tolerance, seconds, threads});
}

Solution solve_one(const py::object& values, const Scopes& scopes, const py::object& costs, double budget,
                   double tolerance, double seconds, const std::vector<Decided>& decided, int threads) {
    return solve_all(values, scopes, costs, {budget}, tolerance, seconds, decided, threads).front();
}

std::vector<Solution> solve_many(const py::object& values, const Scopes& scopes, const py::object& costs,
                                 const py::object& budgets, double tolerance, double seconds,
                                 const std::vector<Decided>& decided, int threads) {
    return solve_all(values, scopes, costs, copied<double>(budgets, "budgets", any_rank), tolerance, seconds, decided,
                     threads);
}

py::tuple cheapest(const Scopes& scopes, const py::object& costs, const std::vector<std::size_t>& sizes,
                   const std::vector<Decided>& decided) {
    Input input;
    read_tables(input, scopes, costs, decided);
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
        .def(py::init([](const py::object& choice, double value, double cost, double bound) {
                 return Solution{copied<std::int64_t>(choice, "choice"), value, cost, bound};
             }),
             py::arg("choice"), py::arg("value"), py::arg("cost"), py::arg("bound"))
        .def_property_readonly("choice", [](const Solution& self) { return array_of<std::int64_t>(self.choice); })
        .def_readonly("value", &Solution::value)
        .def_readonly("cost", &Solution::cost)
        .def_readonly("bound", &Solution::bound);
    module.def("solve", &solve_one, py::arg("values"), py::arg("scopes"), py::arg("costs"), py::arg("budget"),
               py::arg("tolerance") = 0.0, py::arg("seconds") = 10.0, py::arg("decided") = std::vector<Decided>{},
               py::arg("threads") = 0,
               "The options with the largest sum of values whose costs sum to at most the budget.");
    module.def("solve_budgets", &solve_many, py::arg("values"), py::arg("scopes"), py::arg("costs"), py::arg("budgets"),
               py::arg("tolerance") = 0.0, py::arg("seconds") = 10.0, py::arg("decided") = std::vector<Decided>{},
               py::arg("threads") = 0, "A solution for each budget; what the budgets share is done once.");
    module.def("minimum_cost", &cheapest, py::arg("scopes"), py::arg("costs"), py::arg("sizes"),
               py::arg("decided") = std::vector<Decided>{},
               "The smallest possible sum of costs, and the options that attain it.");
}

}  // namespace deploy::bindings
