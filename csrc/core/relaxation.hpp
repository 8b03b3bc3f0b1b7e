#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/elimination.hpp"

namespace deploy {

// The gain of something impossible; sums with it stay impossible.
inline constexpr double impossible = -std::numeric_limits<double>::infinity();

// What an assignment gains: weight * value - price * cost.
// {1, p} is the Lagrangian relaxation at the price p, {0, 1} the search for the smallest cost, which is exact.
struct Gain {
    double weight = 1.0;
    double price = 0.0;
};

// The largest sums of gains per bucket and assignment of its separator: `inside` over everything below (the
// bucket's variable and its descendants), `outside` over all the rest. inside + outside is the best of the whole.
struct Messages {
    std::vector<std::vector<double>> inside;
    std::vector<std::vector<double>> outside;      // empty until add_outside
    std::vector<std::vector<std::uint32_t>> best;  // the x that attains `inside`
    double total() const { return inside.back().front(); }
};

// Per variable and option: the largest sum of gains of all assignments that take it.
using Marginals = std::vector<std::vector<double>>;

Messages relax(const Tree& tree, Gain gain);
Marginals add_outside(Messages& messages, const Tree& tree, Gain gain, const std::vector<std::size_t>& sizes);

// The options that attain messages.total(), which must be possible.
std::vector<std::int64_t> decode(const Messages& messages, const Tree& tree);

}  // namespace deploy
