#include "core/relaxation.hpp"

#include <algorithm>

namespace deploy {
namespace {

// The gains of all assignments of bucket `i`, with the best of everything below it.
void gains_inside(const Messages& messages, const Tree& tree, std::size_t i, Gain gain, std::vector<double>& result) {
    const Bucket& bucket = tree.buckets[i];
    result.resize(bucket.cost.size());
    for (std::size_t a = 0; a < result.size(); ++a) {
        result[a] = bucket.cost[a] == forbidden ? impossible : -gain.price * bucket.cost[a];
    }
    if (gain.weight != 0.0) {
        const std::size_t period = bucket.value.size();
        for (std::size_t start = 0; start < result.size(); start += period) {
            for (std::size_t x = 0; x < period; ++x) {
                result[start + x] += gain.weight * bucket.value[x];
            }
        }
    }
    for (std::size_t j = 0; j < bucket.children.size(); ++j) {
        const double* below = messages.inside[bucket.children[j]].data();
        const std::uint32_t* index = bucket.child_index[j].data();
        for (std::size_t a = 0; a < result.size(); ++a) {
            result[a] += below[index[a]];
        }
    }
}

}  // namespace

Messages relax(const Tree& tree, Gain gain) {
    Messages messages;
    std::vector<double> gains;
    for (std::size_t i = 0; i < tree.buckets.size(); ++i) {
        const Bucket& bucket = tree.buckets[i];
        gains_inside(messages, tree, i, gain, gains);
        std::vector<double>& inside = messages.inside.emplace_back(bucket.separator_size);
        std::vector<std::uint32_t>& best = messages.best.emplace_back(bucket.separator_size);
        for (std::size_t s = 0; s < bucket.separator_size; ++s) {
            const auto start = gains.begin() + static_cast<std::ptrdiff_t>(s * bucket.options);
            const auto largest = std::max_element(start, start + static_cast<std::ptrdiff_t>(bucket.options));
            inside[s] = *largest;
            best[s] = static_cast<std::uint32_t>(largest - start);
        }
    }
    return messages;
}

Marginals add_outside(Messages& messages, const Tree& tree, Gain gain, const std::vector<std::size_t>& sizes) {
    Marginals marginals;
    for (const std::size_t size : sizes) {
        marginals.emplace_back(size, impossible);
    }
    for (const Bucket& bucket : tree.buckets) {
        messages.outside.emplace_back(bucket.separator_size, impossible);
    }
    messages.outside.back().front() = 0.0;
    std::vector<double> whole;
    for (std::size_t i = tree.buckets.size(); i-- > 0;) {
        const Bucket& bucket = tree.buckets[i];
        gains_inside(messages, tree, i, gain, whole);
        for (std::size_t a = 0; a < whole.size(); ++a) {
            whole[a] += messages.outside[i][a / bucket.options];
            if (i != tree.root()) {
                double& best = marginals[bucket.variable][bucket.option(a)];
                best = std::max(best, whole[a]);
            }
        }
        for (std::size_t j = 0; j < bucket.children.size(); ++j) {
            const std::vector<double>& inside = messages.inside[bucket.children[j]];
            std::vector<double>& outside = messages.outside[bucket.children[j]];
            for (std::size_t a = 0; a < whole.size(); ++a) {
                const std::size_t s = bucket.child_index[j][a];
                if (whole[a] != impossible) {
                    outside[s] = std::max(outside[s], whole[a] - inside[s]);
                }
            }
        }
    }
    return marginals;
}

std::vector<std::int64_t> decode(const Messages& messages, const Tree& tree) {
    std::vector<std::int64_t> choice(tree.buckets.size() - 1);
    std::vector<std::uint32_t> separator(tree.buckets.size(), 0);
    for (std::size_t i = tree.buckets.size(); i-- > 0;) {
        const Bucket& bucket = tree.buckets[i];
        const std::size_t assignment = separator[i] * bucket.options + messages.best[i][separator[i]];
        if (i != tree.root()) {
            choice[bucket.variable] = static_cast<std::int64_t>(bucket.option(assignment));
        }
        for (std::size_t j = 0; j < bucket.children.size(); ++j) {
            separator[bucket.children[j]] = bucket.child_index[j][assignment];
        }
    }
    return choice;
}

}  // namespace deploy
