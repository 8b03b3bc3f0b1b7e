#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "core/relaxation.hpp"

namespace deploy {

// The Lagrangian relaxation at one price: it bounds what a state can still gain. Each price has states that it bounds
// better than the others do.
struct Relaxed {
    double price = 0.0;
    Messages messages;  // with outside messages
};

// What a search may use: the problem, bounds on what is not decided yet, and its limits.
struct SearchSpace {
    const Problem& problem;
    const Tree& tree;
    Cost budget;
    std::span<const Relaxed> relaxed;  // at least one
    const Messages& cheapest;          // gains {0, 1}, with outside messages
    double cutoff;                     // states that cannot exceed this value are left out
    std::size_t max_steps;             // states looked at
    std::chrono::steady_clock::time_point deadline;
    int threads;
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
    std::optional<std::vector<std::int64_t>> choice;  // the best found with a value above `cutoff`
    double value = impossible;                        // of `choice`
    double bound = impossible;                        // no other assignment above `cutoff` has a larger value
    std::size_t steps = 0;
};

// Dynamic programming over the tree with cut fronts.
// std::nullopt where the steps or the time ended, or the states need more than about 1 GiB. But for the time, the
// result does not depend on the number of threads.
std::optional<SearchResult> search_fronts(const SearchSpace& space, Beam beam);

}  // namespace deploy
