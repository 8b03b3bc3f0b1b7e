#include "core/relaxation.hpp"

#include <algorithm>

namespace deploy {
namespace {

struct Priced {
    Values values;
    double price;
    double operator()(const Bucket& bucket, bool root, std::size_t assignment) const {
        const Cost cost = bucket.cost[assignment];
        const double value = root ? 0.0 : values[bucket.variable][assignment % bucket.options];
        return cost == forbidden ? impossible<double> : value - price * static_cast<double>(cost);
    }
};

struct Cheap {
    Cost operator()(const Bucket& bucket, bool, std::size_t assignment) const {
        const Cost cost = bucket.cost[assignment];
        return cost == forbidden ? impossible<Cost> : -cost;
    }
};

template <typename Gain, typename Own>
Gain gain_inside(const Messages<Gain>& messages, const Tree& tree, std::size_t i, std::size_t assignment,
                 const Own& own) {
    const Bucket& bucket = tree.buckets[i];
    Gain gain = own(bucket, i == tree.root(), assignment);
    for (std::size_t j = 0; j < bucket.children.size(); ++j) {
        gain = plus(gain, messages.inside[bucket.children[j]][bucket.child_index[j][assignment]]);
    }
    return gain;
}

template <typename Gain, typename Own>
Messages<Gain> inward(const Tree& tree, const Own& own) {
    Messages<Gain> messages;
    for (std::size_t i = 0; i < tree.buckets.size(); ++i) {
        const Bucket& bucket = tree.buckets[i];
        std::vector<Gain> inside(bucket.separator_size, impossible<Gain>);
        std::vector<std::uint32_t> best(bucket.separator_size, 0);
        for (std::size_t s = 0; s < bucket.separator_size; ++s) {
            for (std::size_t x = 0; x < bucket.options; ++x) {
                const Gain gain = gain_inside(messages, tree, i, s * bucket.options + x, own);
                if (gain > inside[s]) {
                    inside[s] = gain;
                    best[s] = static_cast<std::uint32_t>(x);
                }
            }
        }
        messages.inside.push_back(std::move(inside));
        messages.best.push_back(std::move(best));
    }
    return messages;
}

template <typename Gain, typename Own>
void outward(Messages<Gain>& messages, const Tree& tree, const Own& own) {
    for (const Bucket& bucket : tree.buckets) {
        messages.outside.emplace_back(bucket.separator_size, impossible<Gain>);
    }
    messages.outside.back().front() = Gain{0};
    for (std::size_t i = tree.buckets.size(); i-- > 0;) {
        const Bucket& bucket = tree.buckets[i];
        for (std::size_t a = 0; a < bucket.cost.size(); ++a) {
            const Gain whole = plus(gain_inside(messages, tree, i, a, own), messages.outside[i][a / bucket.options]);
            if (whole == impossible<Gain>) {
                continue;
            }
            for (std::size_t j = 0; j < bucket.children.size(); ++j) {
                const std::size_t child = bucket.children[j];
                const std::size_t s = bucket.child_index[j][a];
                messages.outside[child][s] = std::max(messages.outside[child][s], whole - messages.inside[child][s]);
            }
        }
    }
}

}  // namespace

Messages<double> relax(const Tree& tree, Values values, double price) {
    return inward<double>(tree, Priced{values, price});
}

Messages<Cost> cheapest(const Tree& tree) {
    return inward<Cost>(tree, Cheap{});
}

void add_outside(Messages<double>& messages, const Tree& tree, Values values, double price) {
    outward(messages, tree, Priced{values, price});
}

void add_outside(Messages<Cost>& messages, const Tree& tree) {
    outward(messages, tree, Cheap{});
}

}  // namespace deploy
