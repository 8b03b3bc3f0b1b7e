#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "core/relaxation.hpp"

namespace deploy {

// What a search may use: the problem, bounds on what is not decided yet, and its limits.
struct SearchSpace {
    const Problem& problem;
    const Tree& tree;
    Cost budget;
    double price;
    const Messages& relaxed;   // at `price`, with outside messages
    const Messages& cheapest;  // gains {0, 1}, with outside messages
    double accepted;           // states that cannot exceed this value are left out
    std::size_t max_steps;     // states looked at
    std::chrono::steady_clock::time_point deadline;
};

// What to do with a front of more than `size` Pareto-optimal (cost, value) states.
// best: keep those with the highest bounds. That finds good solutions early.
// merge: put neighbours together, of similar values: the smallest cost and the largest value of them go on as one
// state. That bounds the best value from above however it depends on the budget, the closer the larger `size` is.
enum class Cut { best, merge };
struct Beam {
    std::size_t size;
    Cut cut;
};

struct SearchResult {
    std::optional<std::vector<std::int64_t>> choice;  // the best found with a value above `accepted`
    double value = impossible;                        // of `choice`
    double bound = impossible;                        // no other assignment above `accepted` has a larger value
    std::size_t steps = 0;
};

// Dynamic programming over the tree with cut fronts.
// std::nullopt where the steps or the time ended, or the states need more than about 1 GiB.
std::optional<SearchResult> search_fronts(const SearchSpace& space, Beam beam);

}  // namespace deploy
