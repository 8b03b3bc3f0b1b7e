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

// What a search may use: the problem, and bounds on what is not decided yet.
struct SearchSpace {
    const Tree& tree;
    Values values;
    Cost budget;
    const Messages<double>& relaxed;  // at `price`, with outside messages
    double price;
    const Messages<Cost>& cheapest;  // with outside messages
    double accepted;                 // states that cannot exceed this value are left out
    std::chrono::steady_clock::time_point deadline;
};

struct SearchResult {
    std::optional<std::vector<std::int64_t>> choice;             // the best found with a value above `accepted`
    double left_out = -std::numeric_limits<double>::infinity();  // no state cut by the beam can exceed this value
};

// Dynamic programming with at most `beam` Pareto-optimal (cost, value) states per front.
// std::nullopt where the deadline passed or the states need more than about 1 GiB.
std::optional<SearchResult> search_fronts(const SearchSpace& space, std::size_t beam);

}  // namespace deploy
