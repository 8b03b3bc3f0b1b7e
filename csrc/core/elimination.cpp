#include "core/elimination.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <stdexcept>
#include <tuple>

namespace deploy {
namespace {

constexpr std::size_t max_entries = std::size_t{1} << 25;

using Neighbours = std::vector<std::set<std::size_t>>;

void couple(Neighbours& neighbours, std::span<const std::size_t> scope) {
    for (const std::size_t a : scope) {
        for (const std::size_t b : scope) {
            if (a != b) {
                neighbours[a].insert(b);
            }
        }
    }
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

void remove(Neighbours& neighbours, std::size_t variable) {
    for (const std::size_t a : neighbours[variable]) {
        neighbours[a].insert(neighbours[variable].begin(), neighbours[variable].end());
        neighbours[a].erase(a);
        neighbours[a].erase(variable);
    }
}

// Saturates, as it is compared with a limit only.
std::size_t table_size(std::span<const std::size_t> sizes, const std::set<std::size_t>& variables) {
    std::size_t result = 1;
    for (const std::size_t variable : variables) {
        result = sizes[variable] > max_entries / result ? max_entries + 1 : result * sizes[variable];
    }
    return result;
}

// The function that decides each variable, or null.
std::vector<const Function*> deciders(const Problem& problem) {
    std::vector<const Function*> result(problem.values.size(), nullptr);
    for (const Function& function : problem.functions) {
        result[function.variable] = &function;
    }
    return result;
}

// Row-major numbers of assignments of `axes`, from the place value of each axis.
std::vector<std::uint32_t> numbered(std::span<const std::size_t> sizes, std::span<const std::size_t> axes,
                                    std::span<const std::size_t> places) {
    std::vector<std::uint32_t> result{0};
    for (std::size_t i = 0; i < axes.size(); ++i) {
        std::vector<std::uint32_t> longer;
        longer.reserve(result.size() * sizes[axes[i]]);
        for (const std::uint32_t base : result) {
            for (std::size_t x = 0; x < sizes[axes[i]]; ++x) {
                longer.push_back(base + static_cast<std::uint32_t>(x * places[i]));
            }
        }
        result = std::move(longer);
    }
    return result;
}

// For every assignment of `bucket`, the row-major number of the part of it that `scope` sees.
std::vector<std::uint32_t> project(std::span<const std::size_t> sizes, const Bucket& bucket, bool root,
                                   std::span<const std::size_t> scope) {
    std::vector<std::size_t> axes = bucket.separator;
    if (!root && bucket.decided.empty()) {
        axes.push_back(bucket.variable);
    }
    std::vector<std::size_t> places(axes.size(), 0);
    std::size_t place = 1;
    std::size_t own_place = 0;
    for (std::size_t i = scope.size(); i-- > 0;) {
        const auto axis = std::ranges::find(axes, scope[i]);
        (axis == axes.end() ? own_place : places[static_cast<std::size_t>(axis - axes.begin())]) = place;
        place *= sizes[scope[i]];
    }
    std::vector<std::uint32_t> result = numbered(sizes, axes, places);
    for (std::size_t a = 0; own_place > 0 && a < result.size(); ++a) {
        result[a] += static_cast<std::uint32_t>(own_place) * bucket.decided[a];
    }
    return result;
}

// What `function` decides at every assignment of the separator; impossible ones are forbidden and get any option.
void decide(Bucket& bucket, const Problem& problem, std::span<const std::size_t> sizes, const Function& function) {
    const std::size_t scope[] = {function.first, function.second};
    bucket.options = 1;
    bucket.cost.assign(bucket.separator_size, 0.0);
    const std::vector<std::uint32_t> index = project(sizes, bucket, true, scope);
    for (std::size_t s = 0; s < index.size(); ++s) {
        const std::uint32_t option = function.option[index[s]];
        bucket.decided.push_back(option == no_option ? 0 : option);
        bucket.cost[s] = option == no_option ? forbidden : 0.0;
        bucket.value.push_back(problem.values[bucket.variable][bucket.decided.back()]);
    }
}

}  // namespace

void check_entries(std::size_t entries) {
    if (entries > max_entries) {
        throw std::invalid_argument(
            "the costs couple too many variables: an exact solution needs tables of more "
            "than 33554432 entries; offer fewer options or split wide scopes");
    }
}

Order elimination_order(const Problem& problem) {
    const std::vector<std::size_t> sizes = problem.sizes();
    check_entries(std::accumulate(sizes.begin(), sizes.end(), std::size_t{0}));
    const std::vector<const Function*> decider = deciders(problem);
    Neighbours neighbours(sizes.size());
    std::vector<std::size_t> decides(sizes.size(), 0);  // how many variables that are left
    for (const Factor& factor : problem.factors) {
        couple(neighbours, factor.scope);
    }
    for (const Function& function : problem.functions) {
        const std::size_t scope[] = {function.variable, function.first, function.second};
        couple(neighbours, scope);
        ++decides[function.first];
        ++decides[function.second];
    }
    std::set<std::size_t> left;
    for (std::size_t v = 0; v < sizes.size(); ++v) {
        left.insert(left.end(), v);
    }
    Order order;
    std::size_t entries = 0;
    while (!left.empty()) {
        const auto key = [&](std::size_t v) {
            const std::size_t own = decider[v] ? 1 : sizes[v];
            return std::tuple(decides[v] > 0, fill_in(neighbours, v), table_size(sizes, neighbours[v]) * own, v);
        };
        const std::size_t variable = std::ranges::min(left, {}, key);
        entries += std::get<2>(key(variable));
        check_entries(entries);
        order.variables.push_back(variable);
        order.separators.emplace_back(neighbours[variable].begin(), neighbours[variable].end());
        if (const Function* function = decider[variable]) {
            --decides[function->first];
            --decides[function->second];
        }
        remove(neighbours, variable);
        left.erase(variable);
    }
    return order;
}

Tree eliminate(const Problem& problem, const Order& order) {
    const std::vector<std::size_t> sizes = problem.sizes();
    const std::vector<const Function*> decider = deciders(problem);
    std::vector<std::size_t> step(sizes.size());
    Tree tree;
    for (std::size_t i = 0; i < order.variables.size(); ++i) {
        Bucket bucket;
        bucket.variable = order.variables[i];
        bucket.separator = order.separators[i];
        step[bucket.variable] = i;
        for (const std::size_t variable : bucket.separator) {
            bucket.separator_size *= sizes[variable];
        }
        if (decider[bucket.variable]) {
            decide(bucket, problem, sizes, *decider[bucket.variable]);
        } else {
            bucket.options = sizes[bucket.variable];
            bucket.value = problem.values[bucket.variable];
            bucket.cost.assign(bucket.separator_size * bucket.options, 0.0);
        }
        tree.buckets.push_back(std::move(bucket));
    }
    tree.buckets.emplace_back();
    tree.buckets.back().value = {0.0};
    tree.buckets.back().cost = {0.0};
    const auto earliest = [&](std::span<const std::size_t> variables) {
        std::size_t result = tree.root();
        for (const std::size_t variable : variables) {
            result = std::min(result, step[variable]);
        }
        return result;
    };
    for (const Factor& factor : problem.factors) {
        const std::size_t owner = earliest(factor.scope);
        Bucket& bucket = tree.buckets[owner];
        const std::vector<std::uint32_t> index = project(sizes, bucket, owner == tree.root(), factor.scope);
        for (std::size_t a = 0; a < index.size(); ++a) {
            bucket.cost[a] += factor.cost[index[a]];
        }
    }
    for (std::size_t i = 0; i < tree.root(); ++i) {
        tree.buckets[earliest(tree.buckets[i].separator)].children.push_back(i);
    }
    for (Bucket& parent : tree.buckets) {
        std::ranges::stable_sort(parent.children, {}, [&](std::size_t i) { return tree.buckets[i].separator; });
        for (const std::size_t child : parent.children) {
            const bool root = &parent == &tree.buckets.back();
            parent.child_index.push_back(project(sizes, parent, root, tree.buckets[child].separator));
        }
    }
    return tree;
}

}  // namespace deploy
