#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "core/hull.hpp"

namespace deploy {

using Clock = std::chrono::steady_clock;

// A problem or a restriction of it, prepared for any budget.
struct Subproblem {
    Domains domains;  // the options of the whole problem that are left
    Problem problem;
    std::vector<std::size_t> sizes;
    Tree tree;
    Messages cheapest;

    Subproblem(const Problem& whole, const Order& order, Domains left);
    bool possible(Cost budget) const { return -cheapest.total() <= budget; }
};

// One problem at one budget: wanted is the assignment of the largest value and at most cost `budget`.
struct Instance {
    const Problem& whole;
    const Order& order;
    Cost budget;
    double tolerance;
    double slack;  // values this close count as equal
    Clock::time_point deadline;

    // Values up to this are no better than an incumbent of value `value`.
    double cutoff(double value) const;
};

// Assignments that are still open: none of them has a value above `bound`, which was smallest at `price`.
struct Node {
    Domains domains;
    double bound = 0.0;
    double price = 0.0;
};

struct NodeResult {
    std::vector<std::int64_t> choice;  // in options of the whole problem; empty where nothing better was found
    double value = impossible;
    double closed_bound = impossible;  // no assignment in what was closed has a value above this
    std::vector<Node> open;            // the others
};

// How much work a node may take.
struct Effort {
    std::size_t steps;  // states looked at, about
    int threads;
};

// Close or branch a node; `incumbent` is the best value found so far.
NodeResult solve_node(const Instance& instance, const Node& node, double incumbent, Effort effort);

// The same for all of `subproblem`, whose hull was refined for the instance's budget to `price`.
NodeResult solve_node(const Instance& instance, const Subproblem& subproblem, const Hull& hull, double price,
                      Effort effort);

}  // namespace deploy
