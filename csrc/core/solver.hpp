#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace deploy {

// A cost that depends on the options of a few variables.
struct CostTable {
    std::vector<std::size_t> scope;  // distinct variables, 1 to 4
    std::vector<std::size_t> shape;  // the number of options of each variable in `scope`
    std::span<const double> cost;    // row-major over `shape`; +infinity forbids a combination
};

// A variable that two earlier ones decide: its option is option[first, second].
struct Dependence {
    std::size_t variable = 0;
    std::size_t first = 0;
    std::size_t second = 0;
    std::vector<std::size_t> shape;        // the number of options of `first` and `second`
    std::span<const std::int64_t> option;  // row-major over `shape`
};

struct Solution {
    std::vector<std::int64_t> choice;  // one option per variable
    double value = 0.0;
    double cost = 0.0;
    double bound = 0.0;  // no choice within the budget has a larger value
};

struct Limits {
    double tolerance = 0.0;  // accepted relative distance of value and bound
    double seconds = 10.0;   // for each budget
    int threads = 0;         // 0: all processors
};

// One option per variable with the largest sum of `values` whose costs sum to at most the budget; one solution for
// each of `budgets`, in their order. What does not depend on the budget is done once.
//
// The Lagrangian relaxation is solved exactly by variable elimination, which gives an upper bound and first
// solutions. Dynamic programming over the same elimination order with Pareto fronts of (cost, value) then leaves out
// what the bound of the remainder cannot lift above the best known solution; fronts are first cut to few states, then
// to more, so that a good solution is known early. Where that takes long, because the best values are no concave
// function of the budget, the options of one variable are split in two and both halves are solved in the same way
// (branch and bound, the half with the higher bound first), without the options that their bounds exclude.
// Where the time ends, the best known solution comes back with the bound proven so far. Otherwise the result does not
// depend on the number of threads.
//
// Time and memory grow with the product of the options of the variables that meet in an elimination step.
// Costs are summed exactly in units of 2^-51 of their total, a budget has a slack of 2^-43 of that total (the
// rounding error of adding them as doubles), and values within 1e-12 of their total count as equal.
// Throws std::invalid_argument for malformed input and Infeasible where even the smallest cost is too large.
std::vector<Solution> solve(std::span<const std::vector<double>> values, std::span<const CostTable> tables,
                            std::span<const Dependence> dependences, std::span<const double> budgets,
                            const Limits& limits);

// The choice of the smallest cost, for `sizes` options per variable; value and bound are 0.
// Throws as `solve`, Infeasible where every choice is forbidden.
Solution minimum_cost(std::span<const std::size_t> sizes, std::span<const CostTable> tables,
                      std::span<const Dependence> dependences);

}  // namespace deploy
