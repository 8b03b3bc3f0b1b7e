#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/problem.hpp"

namespace deploy {

// The variables in the order of their elimination, and what each is still coupled with at its turn.
struct Order {
    std::vector<std::size_t> variables;
    std::vector<std::vector<std::size_t>> separators;  // ascending
};

// Throws std::invalid_argument where an exact solution would need tables of so many entries, more than 2^25.
void check_entries(std::size_t entries);

// Next comes the variable that couples the fewest others anew (min-fill). A variable that others decide is
// eliminated before them, so that its tables have no dimension for it.
// Throws as check_entries, for the entries of all tables and for the options of all variables.
Order elimination_order(const Problem& problem);

// One elimination step: a variable given the variables in `separator`. Assignments of separator and variable
// together are numbered row-major, the variable fastest: number = s * options + x. A variable that others decide has
// no dimension of its own: its `options` are 1.
struct Bucket {
    std::size_t variable = 0;
    std::size_t options = 1;
    std::vector<std::uint32_t> decided;  // its option per assignment, where others decide it; otherwise empty
    std::vector<double> value;           // per option, or per assignment where others decide it
    std::vector<std::size_t> separator;
    std::size_t separator_size = 1;                       // number of assignments of the separator
    std::vector<Cost> cost;                               // of the factors that belong to this step, per assignment
    std::vector<std::size_t> children;                    // those of equal separators side by side
    std::vector<std::vector<std::uint32_t>> child_index;  // per child and assignment: the child's s

    std::size_t option(std::size_t assignment) const {
        return decided.empty() ? assignment % options : decided[assignment];
    }
    double value_at(std::size_t assignment) const {
        return decided.empty() ? value[assignment % options] : value[assignment];
    }
};

// Buckets in the order of elimination: children come before parents. The last one is a root without a variable.
struct Tree {
    std::vector<Bucket> buckets;
    std::size_t root() const { return buckets.size() - 1; }
};

Tree eliminate(const Problem& problem, const Order& order);

}  // namespace deploy
