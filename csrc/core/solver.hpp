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

struct Solution {
    std::vector<std::int64_t> choice;  // one option per variable
    double value = 0.0;
    double cost = 0.0;
    double bound = 0.0;  // no choice within the budget has a larger value
};

struct Limits {
    double budget = 0.0;
    double tolerance = 0.0;  // accepted relative distance of value and bound
    double seconds = 10.0;
};

// One option per variable with the largest sum of `values` whose costs sum to at most the budget.
//
// The Lagrangian relaxation (Everett 1963) is solved exactly by variable elimination, which gives an upper bound
// and first solutions; dynamic programming over the same elimination order with Pareto fronts of (cost, value)
// then closes the gap, leaving out what the bound of the remainder cannot lift above the best known solution.
// Fronts are first cut to few states, then to more, so that a good solution is known early. Where the time or the
// memory for states (about 1 GiB) runs out, the best known solution comes back with the bound proven so far.
//
// Time and memory grow with the product of the options of the variables that meet in an elimination step.
// Costs are summed exactly in units of 2^-59 of their total, the budget has a slack of 2^-43 of that total (the
// rounding error of adding them as doubles), and values within 1e-12 of their total count as equal.
// Throws std::invalid_argument for malformed input and Infeasible where even the smallest cost is too large.
Solution solve(std::span<const std::vector<double>> values, std::span<const CostTable> tables, const Limits& limits);

// The choice of the smallest cost, for `sizes` options per variable; value and bound are 0.
// Throws as `solve`, Infeasible where every choice is forbidden.
Solution minimum_cost(std::span<const std::size_t> sizes, std::span<const CostTable> tables);

}  // namespace deploy
