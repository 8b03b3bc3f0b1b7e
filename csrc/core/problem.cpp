#include "core/problem.hpp"

#include <numeric>

namespace deploy {
namespace {

// Row-major positions of the entries that `domains` leaves of a table over `scope`.
std::vector<std::size_t> entries_left(std::span<const std::size_t> sizes, const Domains& domains,
                                      std::span<const std::size_t> scope) {
    std::vector<std::size_t> result{0};
    for (const std::size_t variable : scope) {
        std::vector<std::size_t> longer;
        longer.reserve(result.size() * domains[variable].size());
        for (const std::size_t base : result) {
            for (const std::uint32_t option : domains[variable]) {
                longer.push_back(base * sizes[variable] + option);
            }
        }
        result = std::move(longer);
    }
    return result;
}

template <typename T>
std::vector<T> taken(const std::vector<T>& items, const std::vector<std::size_t>& positions) {
    std::vector<T> result;
    result.reserve(positions.size());
    for (const std::size_t position : positions) {
        result.push_back(items[position]);
    }
    return result;
}

}  // namespace

std::vector<std::size_t> Problem::sizes() const {
    std::vector<std::size_t> result;
    for (const std::vector<double>& options : values) {
        result.push_back(options.size());
    }
    return result;
}

double Problem::value_of(std::span<const std::int64_t> choice) const {
    double result = 0.0;
    for (std::size_t v = 0; v < values.size(); ++v) {
        result += values[v][static_cast<std::size_t>(choice[v])];
    }
    return result;
}

Domains all_options(const Problem& problem) {
    Domains result;
    for (const std::size_t size : problem.sizes()) {
        std::vector<std::uint32_t>& options = result.emplace_back(size);
        std::iota(options.begin(), options.end(), 0U);
    }
    return result;
}

Problem restricted(const Problem& problem, const Domains& domains) {
    const std::vector<std::size_t> sizes = problem.sizes();
    Problem result;
    for (std::size_t v = 0; v < sizes.size(); ++v) {
        result.values.push_back(taken(problem.values[v], {domains[v].begin(), domains[v].end()}));
    }
    for (const Factor& factor : problem.factors) {
        result.factors.push_back({factor.scope, taken(factor.cost, entries_left(sizes, domains, factor.scope))});
    }
    for (const Function& function : problem.functions) {
        std::vector<std::uint32_t> number(sizes[function.variable], no_option);
        for (std::size_t i = 0; i < domains[function.variable].size(); ++i) {
            number[domains[function.variable][i]] = static_cast<std::uint32_t>(i);
        }
        const std::size_t scope[] = {function.first, function.second};
        Function smaller = function;
        smaller.option = taken(function.option, entries_left(sizes, domains, scope));
        for (std::uint32_t& option : smaller.option) {
            option = option == no_option ? no_option : number[option];
        }
        result.functions.push_back(std::move(smaller));
    }
    return result;
}

}  // namespace deploy
