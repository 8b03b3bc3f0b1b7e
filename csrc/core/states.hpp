#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "core/relaxation.hpp"

namespace deploy {

// Two earlier links that were joined. The first links are no pairs but stand for one option of one variable.
struct Link {
    std::uint32_t left;
    std::uint32_t right;
};

inline constexpr std::uint32_t no_link = std::numeric_limits<std::uint32_t>::max();

// What a partial assignment costs and is worth, and how it came about.
struct State {
    Cost cost;
    double value;
    Link link;
};

using Front = std::vector<State>;

// What is left ascends in cost and in value.
void drop_dominated(Front& front);

// Drop dominated states; where more than `size` are left, states of similar values go on as one, with the smallest cost
// and the largest value of them: no state is lost that would be better than what stands for it.
void merge(Front& front, std::size_t size);

// Keep the `size` states of the highest scores, in order; returns the highest score of those that go.
double keep_best(Front& front, std::span<const double> scores, std::size_t size);

}  // namespace deploy
