#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "core/hull.hpp"

namespace deploy {

using Clock = std::chrono::steady_clock;

// A problem or a restriction of it, prepared for any budget.
struct Part {
    Domains domains;  // the options of the whole problem that are left
    Problem problem;
    std::vector<std::size_t> sizes;
    Tree tree;
    Messages cheapest;

    Part(const Problem& whole, const Order& order, Domains left);
    bool possible(Cost budget) const { return -cheapest.total() <= budget; }
};

// What is asked: the assignment of the largest value and at most cost `budget`.
struct Question {
    const Problem& whole;
    const Order& order;
    Cost budget;
    double tolerance;
    double slack;  // values this close count as equal
    Clock::time_point deadline;

    // The value that is good enough where `value` is known.
    double accepted(double value) const;
};

// Assignments still worth a look: none of them has a value above `bound`, which was smallest at `price`.
struct Node {
    Domains domains;
    double bound = 0.0;
    double price = 0.0;
};

struct Answer {
    std::vector<std::int64_t> choice;  // in options of the whole problem; empty where nothing better was found
    double value = impossible;
    double settled = impossible;  // no assignment that was settled here has a value above this
    std::vector<Node> open;       // the others
};

// What a node may cost.
struct Effort {
    std::size_t steps;  // states looked at, about
    int threads;
};

// Settle or split a node; `known` is the best value known.
Answer settle(const Question& question, const Node& node, double known, Effort effort);

// The same for all of `part`, whose hull was refined for the question's budget to `price`.
Answer settle(const Question& question, const Part& part, const Hull& hull, double price, Effort effort);

}  // namespace deploy
