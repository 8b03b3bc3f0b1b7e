#include "core/elimination.hpp"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>

namespace deploy {
namespace {

constexpr std::size_t max_entries = std::size_t{1} << 25;

using Neighbours = std::vector<std::set<std::size_t>>;

Neighbours coupled(std::size_t variables, std::span<const Factor> factors) {
    Neighbours result(variables);
    for (const Factor& factor : factors) {
        for (const std::size_t a : factor.scope) {
            for (const std::size_t b : factor.scope) {
                if (a != b) {
                    result[a].insert(b);
                }
            }
        }
    }
    return result;
}

std::size_t fill_in(const Neighbours& neighbours, std::size_t variable) {
    std::size_t missing = 0;
    for (const std::size_t a : neighbours[variable]) {
        for (const std::size_t b : neighbours[variable]) {
            missing += a < b && !neighbours[a].contains(b) ? 1 : 0;
        }
    }
    return missing;
}

// Saturates, as it is compared with a limit only.
std::size_t table_size(std::span<const std::size_t> sizes, const std::set<std::size_t>& variables) {
    std::size_t result = 1;
    for (const std::size_t variable : variables) {
        result = std::min(result * sizes[variable], max_entries + 1);
    }
    return result;
}

std::size_t next_variable(const Neighbours& neighbours, std::span<const std::size_t> sizes,
                          const std::set<std::size_t>& left) {
    const auto key = [&](std::size_t v) {
        return std::tuple(fill_in(neighbours, v), table_size(sizes, neighbours[v]) * sizes[v], v);
    };
    return std::ranges::min(left, {}, key);
}

void remove(Neighbours& neighbours, std::size_t variable) {
    for (const std::size_t a : neighbours[variable]) {
        neighbours[a].insert(neighbours[variable].begin(), neighbours[variable].end());
        neighbours[a].erase(a);
        neighbours[a].erase(variable);
    }
}

// For every assignment of `clique`, the row-major number of the part of it that `scope` sees.
std::vector<std::uint32_t> project(std::span<const std::size_t> sizes, std::span<const std::size_t> clique,
                                   std::span<const std::size_t> scope) {
    std::vector<std::size_t> strides(clique.size(), 0);
    std::size_t stride = 1;
    for (std::size_t i = scope.size(); i-- > 0;) {
        const auto place = std::ranges::find(clique, scope[i]) - clique.begin();
        strides[static_cast<std::size_t>(place)] = stride;
        stride *= sizes[scope[i]];
    }
    std::vector<std::uint32_t> result{0};
    for (std::size_t i = 0; i < clique.size(); ++i) {
        std::vector<std::uint32_t> longer;
        longer.reserve(result.size() * sizes[clique[i]]);
        for (const std::uint32_t base : result) {
            for (std::size_t x = 0; x < sizes[clique[i]]; ++x) {
                longer.push_back(base + static_cast<std::uint32_t>(x * strides[i]));
            }
        }
        result = std::move(longer);
    }
    return result;
}

void add_cost(Bucket& bucket, const Factor& factor, std::span<const std::uint32_t> index) {
    for (std::size_t i = 0; i < index.size(); ++i) {
        const Cost cost = factor.cost[index[i]];
        bucket.cost[i] = cost == forbidden || bucket.cost[i] == forbidden ? forbidden : bucket.cost[i] + cost;
    }
}

std::vector<std::size_t> clique_of(const Tree& tree, std::size_t bucket) {
    std::vector<std::size_t> clique = tree.buckets[bucket].separator;
    if (bucket != tree.root()) {
        clique.push_back(tree.buckets[bucket].variable);
    }
    return clique;
}

// The elimination order as buckets that know their separator and nothing else.
Tree order(std::span<const std::size_t> sizes, std::span<const Factor> factors) {
    Neighbours neighbours = coupled(sizes.size(), factors);
    std::set<std::size_t> left;
    for (std::size_t v = 0; v < sizes.size(); ++v) {
        left.insert(left.end(), v);
    }
    Tree tree;
    std::size_t entries = 0;
    while (!left.empty()) {
        const std::size_t variable = next_variable(neighbours, sizes, left);
        Bucket bucket;
        bucket.variable = variable;
        bucket.options = sizes[variable];
        bucket.separator.assign(neighbours[variable].begin(), neighbours[variable].end());
        bucket.separator_size = table_size(sizes, neighbours[variable]);
        entries += bucket.separator_size * bucket.options;
        if (entries > max_entries) {
            throw std::invalid_argument(
                "the costs couple too many variables: an exact solution needs tables of more "
                "than 33554432 entries; offer fewer options or split wide scopes");
        }
        remove(neighbours, variable);
        left.erase(variable);
        tree.buckets.push_back(std::move(bucket));
    }
    tree.buckets.emplace_back();
    return tree;
}

}  // namespace

Tree eliminate(std::span<const std::size_t> sizes, std::span<const Factor> factors) {
    Tree tree = order(sizes, factors);
    std::vector<std::size_t> step(sizes.size());
    for (std::size_t i = 0; i < tree.root(); ++i) {
        step[tree.buckets[i].variable] = i;
    }
    const auto earliest = [&](std::span<const std::size_t> variables) {
        std::size_t result = tree.root();
        for (const std::size_t variable : variables) {
            result = std::min(result, step[variable]);
        }
        return result;
    };
    for (Bucket& bucket : tree.buckets) {
        bucket.cost.assign(bucket.separator_size * bucket.options, 0);
    }
    for (const Factor& factor : factors) {
        const std::size_t owner = earliest(factor.scope);
        add_cost(tree.buckets[owner], factor, project(sizes, clique_of(tree, owner), factor.scope));
    }
    for (std::size_t i = 0; i < tree.root(); ++i) {
        const std::size_t parent = earliest(tree.buckets[i].separator);
        tree.buckets[parent].children.push_back(i);
        tree.buckets[parent].child_index.push_back(project(sizes, clique_of(tree, parent), tree.buckets[i].separator));
    }
    return tree;
}

}  // namespace deploy
