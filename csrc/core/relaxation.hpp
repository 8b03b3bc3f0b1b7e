#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "core/elimination.hpp"

namespace deploy {

// The gain of something impossible; sums with it stay impossible.
template <typename Gain>
inline constexpr Gain impossible =
    std::is_floating_point_v<Gain> ? -std::numeric_limits<Gain>::infinity() : std::numeric_limits<Gain>::lowest();

template <typename Gain>
Gain plus(Gain a, Gain b) {
    return a == impossible<Gain> || b == impossible<Gain> ? impossible<Gain> : a + b;
}

// The largest sums of gains per bucket and assignment of its separator: `inside` over everything below (the
// bucket's variable and its descendants), `outside` over all the rest. inside + outside is the best of the whole.
template <typename Gain>
struct Messages {
    std::vector<std::vector<Gain>> inside;
    std::vector<std::vector<Gain>> outside;        // empty until add_outside
    std::vector<std::vector<std::uint32_t>> best;  // the option that attains `inside`
    Gain total() const { return inside.back().front(); }
};

using Values = std::span<const std::vector<double>>;

// Gain value - price * cost: the Lagrangian relaxation for one price.
Messages<double> relax(const Tree& tree, Values values, double price);
// Gain -cost: the smallest cost, negated.
Messages<Cost> cheapest(const Tree& tree);

void add_outside(Messages<double>& messages, const Tree& tree, Values values, double price);
void add_outside(Messages<Cost>& messages, const Tree& tree);

// The options that attain messages.total(), which must be possible.
template <typename Gain>
std::vector<std::int64_t> decode(const Messages<Gain>& messages, const Tree& tree) {
    std::vector<std::int64_t> choice(tree.buckets.size() - 1);
    std::vector<std::uint32_t> separator(tree.buckets.size(), 0);
    for (std::size_t i = tree.buckets.size(); i-- > 0;) {
        const Bucket& bucket = tree.buckets[i];
        const std::uint32_t option = messages.best[i][separator[i]];
        if (i != tree.root()) {
            choice[bucket.variable] = option;
        }
        for (std::size_t j = 0; j < bucket.children.size(); ++j) {
            separator[bucket.children[j]] = bucket.child_index[j][separator[i] * bucket.options + option];
        }
    }
    return choice;
}

}  // namespace deploy
