#include "core/scaling.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

#include "core/sizes.hpp"

namespace deploy {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr int budget_slack_bits = 43;
constexpr int total_bits = 51;
constexpr Cost unlimited = Cost{std::int64_t{1} << (total_bits + 1)};
constexpr std::size_t max_rank = 4;

void check_table(const CostTable& table, std::size_t number, std::span<const std::size_t> sizes) {
    const std::string name = "cost " + std::to_string(number) + ": ";
    if (table.scope.empty() || table.scope.size() > max_rank || table.scope.size() != table.shape.size()) {
        throw std::invalid_argument(name + "expected a scope of 1 to 4 variables and as many dimensions, got " +
                                    std::to_string(table.scope.size()) + " and " + std::to_string(table.shape.size()));
    }
    for (std::size_t i = 0; i < table.scope.size(); ++i) {
        if (table.scope[i] >= sizes.size()) {
            throw std::invalid_argument(name + "variable " + std::to_string(table.scope[i]) +
                                        " does not exist, there are " + std::to_string(sizes.size()));
        }
        if (std::ranges::count(table.scope, table.scope[i]) > 1) {
            throw std::invalid_argument(name + "variable " + std::to_string(table.scope[i]) +
                                        " occurs twice in the scope");
        }
        if (table.shape[i] != sizes[table.scope[i]]) {
            throw std::invalid_argument(name + "dimension " + std::to_string(i) + " has " +
                                        std::to_string(table.shape[i]) + " entries, variable " +
                                        std::to_string(table.scope[i]) + " has " +
                                        std::to_string(sizes[table.scope[i]]) + " options");
        }
    }
    if (table.cost.size() != product(table.shape) || table.cost.size() > std::numeric_limits<std::uint32_t>::max()) {
        throw std::invalid_argument(name + "the number of entries contradicts the shape");
    }
    for (const double cost : table.cost) {
        if (std::isnan(cost) || cost == -infinity) {
            throw std::invalid_argument(name + "entries must be numbers or +infinity, not " + text(cost));
        }
    }
}

Function checked(const Dependence& dependence, std::size_t number, std::span<const std::size_t> sizes) {
    const std::string name = "dependence " + std::to_string(number) + ": ";
    const auto& [variable, first, second, shape, option] = dependence;
    if (variable >= sizes.size() || first >= variable || second >= variable || first == second) {
        throw std::invalid_argument(name + "expected a variable and two different earlier ones, got " +
                                    std::to_string(variable) + ", " + std::to_string(first) + " and " +
                                    std::to_string(second));
    }
    if (shape != std::vector<std::size_t>{sizes[first], sizes[second]}) {
        throw std::invalid_argument(name + "expected one entry for each pair of options of its two variables");
    }
    if (option.size() != product(shape)) {
        throw std::invalid_argument(name + "the number of entries contradicts the shape");
    }
    Function result{variable, first, second, {}};
    for (const std::int64_t x : option) {
        if (x < 0 || static_cast<std::size_t>(x) >= sizes[variable]) {
            throw std::invalid_argument(name + "option " + std::to_string(x) + " does not exist, the variable has " +
                                        std::to_string(sizes[variable]));
        }
        result.option.push_back(static_cast<std::uint32_t>(x));
    }
    return result;
}

void check_values(std::span<const std::vector<double>> values) {
    for (std::size_t v = 0; v < values.size(); ++v) {
        if (values[v].empty()) {
            throw std::invalid_argument("variable " + std::to_string(v) + " has no options");
        }
        for (const double value : values[v]) {
            if (!std::isfinite(value)) {
                throw std::invalid_argument("variable " + std::to_string(v) + ": values must be finite, not " +
                                            text(value));
            }
        }
    }
}

}  // namespace

std::string text(double number) {
    // Not through a stream: where a compiler links libstdc++ statically and PyTorch brings the shared one along,
    // streams find no facet for numbers and print nothing or crash.
    std::array<char, 32> buffer{};
    const auto written =
        std::to_chars(buffer.data(), buffer.data() + buffer.size(), number, std::chars_format::general, 10);
    return {buffer.data(), written.ptr};
}

double largest_magnitude(std::span<const double> numbers) {
    double result = 0.0;
    for (const double number : numbers) {
        result = std::isinf(number) ? result : std::max(result, std::abs(number));
    }
    return result;
}

Cost Scaled::budget(double budget) const {
    const double widened = budget + std::ldexp(total, -budget_slack_bits);
    if (std::abs(widened) > 2 * total) {  // all such budgets mean the same, and infinity has no whole number
        return widened > 0 ? unlimited : -unlimited;
    }
    return std::floor(std::ldexp(widened, -exponent));
}

Scaled scale(std::span<const std::vector<double>> values, std::span<const CostTable> tables,
             std::span<const Dependence> dependences) {
    check_values(values);
    Scaled result;
    result.problem.values.assign(values.begin(), values.end());
    const std::vector<std::size_t> sizes = result.problem.sizes();
    for (std::size_t i = 0; i < tables.size(); ++i) {
        check_table(tables[i], i, sizes);
        result.total += largest_magnitude(tables[i].cost);
    }
    if (!std::isfinite(result.total)) {
        throw std::invalid_argument("the costs are too large to add");
    }
    int above = 0;
    std::frexp(std::max(result.total, 1e-290), &above);
    result.exponent = above - total_bits;
    for (const CostTable& table : tables) {
        Factor factor{table.scope, {}};
        for (const double cost : table.cost) {
            factor.cost.push_back(std::isinf(cost) ? forbidden : std::round(std::ldexp(cost, -result.exponent)));
        }
        result.problem.factors.push_back(std::move(factor));
    }
    std::set<std::size_t> decided;
    for (std::size_t i = 0; i < dependences.size(); ++i) {
        result.problem.functions.push_back(checked(dependences[i], i, sizes));
        if (!decided.insert(dependences[i].variable).second) {
            throw std::invalid_argument("dependence " + std::to_string(i) + ": variable " +
                                        std::to_string(dependences[i].variable) + " is decided twice");
        }
    }
    return result;
}

}  // namespace deploy
