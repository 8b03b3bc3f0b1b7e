#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace deploy {

using Cost = std::int64_t;  // in units that the solver chooses, so that sums are exact
inline constexpr Cost forbidden = std::numeric_limits<Cost>::max();

// The cost tables of a problem in units.
struct Factor {
    std::vector<std::size_t> scope;
    std::vector<Cost> cost;  // row-major over the options of `scope`
};

// One elimination step: variable `variable` given the variables in `separator`. Assignments of separator and
// variable together are numbered row-major, the variable fastest: number = s * options + x.
struct Bucket {
    std::size_t variable = 0;
    std::size_t options = 1;
    std::vector<std::size_t> separator;
    std::size_t separator_size = 1;  // number of assignments of the separator
    std::vector<Cost> cost;          // of the factors that belong to this step, per assignment
    std::vector<std::size_t> children;
    std::vector<std::vector<std::uint32_t>> child_index;  // per child and assignment: the child's s
};

// Buckets in the order of elimination: children come before parents. The last one is a root without a variable.
struct Tree {
    std::vector<Bucket> buckets;
    std::size_t root() const { return buckets.size() - 1; }
};

// Eliminate all variables, the one that couples the fewest others anew first (min-fill).
// Throws std::invalid_argument where the tables that this needs hold more than 2^25 entries.
Tree eliminate(std::span<const std::size_t> sizes, std::span<const Factor> factors);

}  // namespace deploy
