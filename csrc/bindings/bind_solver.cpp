#include "bindings/numpy.hpp"
//
#include "bindings/bind.hpp"
#include "core/solver.hpp"

namespace deploy::bindings {
namespace {

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

void read_costs(Input& input, const py::object& scopes, const py::object& costs) {
    for (const py::handle cost : items_of(costs, "costs")) {
        input.costs.emplace_back(cost, [&] { return "cost " + std::to_string(input.costs.size()); });
    }
    for (const py::handle scope : items_of(scopes, "scopes")) {
        CostTable& table = input.tables.emplace_back();
        table.scope =
            numbers_of<std::size_t>(scope, [&] { return "scope " + std::to_string(input.tables.size() - 1); });
    }
    if (input.tables.size() != input.costs.size()) {
        throw py::value_error("expected one scope for each cost, got " + std::to_string(input.tables.size()) + " and " +
                              std::to_string(input.costs.size()));
    }
    for (std::size_t i = 0; i < input.costs.size(); ++i) {
        input.tables[i].shape = input.costs[i].shape;
        input.tables[i].cost = input.costs[i].values;
    }
}

void read_decided(Input& input, const py::object& decided) {
    for (const py::handle item : items_of(decided, "decided")) {
        const auto name = [number = input.options.size()] { return "dependence " + std::to_string(number); };
        const py::tuple parts = items_of(item, name, 4, "(variable, first, second, options)");
        const auto& table = input.options.emplace_back(parts[3], [&] { return "the options of " + name(); });
        input.dependences.push_back({number_of<std::size_t>(parts[0], name),
                                     number_of<std::size_t>(parts[1], name),
                                     number_of<std::size_t>(parts[2], name),
                                     table.shape,
                                     {}});
    }
    for (std::size_t i = 0; i < input.options.size(); ++i) {
        input.dependences[i].option = input.options[i].values;
    }
}

std::vector<Solution> solve_all(const py::object& values, const py::object& scopes, const py::object& costs,
                                const std::vector<double>& budgets, double tolerance, double seconds,
                                const py::object& decided, int threads) {
    std::vector<std::vector<double>> options;
    for (const py::handle value : items_of(values, "values")) {
        options.push_back(
            copied<double>(value, [&] { return "the values of variable " + std::to_string(options.size()); }));
    }
    Input input;
    read_costs(input, scopes, costs);
    read_decided(input, decided);
    const py::gil_scoped_release release;
    return solve(options, input.tables, input.dependences, budgets, {tolerance, seconds, threads});
}

Solution solve_one(const py::object& values, const py::object& scopes, const py::object& costs, double budget,
                   double tolerance, double seconds, const py::object& decided, int threads) {
    return solve_all(values, scopes, costs, {budget}, tolerance, seconds, decided, threads).front();
}

std::vector<Solution> solve_many(const py::object& values, const py::object& scopes, const py::object& costs,
                                 const py::object& budgets, double tolerance, double seconds, const py::object& decided,
                                 int threads) {
    return solve_all(values, scopes, costs, copied<double>(budgets, "budgets", any_rank), tolerance, seconds, decided,
                     threads);
}

py::tuple cheapest(const py::object& scopes, const py::object& costs, const py::object& sizes,
                   const py::object& decided) {
    Input input;
    read_costs(input, scopes, costs);
    read_decided(input, decided);
    const auto options = numbers_of<std::size_t>(sizes, "sizes");
    Solution solution;
    {
        const py::gil_scoped_release release;
        solution = minimum_cost(options, input.tables, input.dependences);
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
               py::arg("tolerance") = 0.0, py::arg("seconds") = 10.0, py::arg("decided") = py::tuple(),
               py::arg("threads") = 0,
               "The options with the largest sum of values whose costs sum to at most the budget.");
    module.def("solve_budgets", &solve_many, py::arg("values"), py::arg("scopes"), py::arg("costs"), py::arg("budgets"),
               py::arg("tolerance") = 0.0, py::arg("seconds") = 10.0, py::arg("decided") = py::tuple(),
               py::arg("threads") = 0, "A solution for each budget; what the budgets share is done once.");
    module.def("minimum_cost", &cheapest, py::arg("scopes"), py::arg("costs"), py::arg("sizes"),
               py::arg("decided") = py::tuple(), "The smallest possible sum of costs, and the options that attain it.");
}

}  // namespace deploy::bindings
