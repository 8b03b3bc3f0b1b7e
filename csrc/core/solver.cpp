#include "core/solver.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/errors.hpp"
#include "core/fronts.hpp"

namespace deploy {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double value_slack = 1e-12;  // relative to the total of all values
constexpr int budget_slack_bits = 43;
constexpr int total_bits = 59;
constexpr Cost unlimited = Cost{1} << (total_bits + 2);
constexpr int max_price_steps = 200;
constexpr std::size_t max_rank = 4;

std::string text(double number) {
    std::ostringstream stream;
    stream.precision(10);
    stream << number;
    return stream.str();
}

// The problem in exact units of 2^exponent.
struct Scaled {
    std::vector<Factor> factors;
    double total = 0.0;  // sum of the largest magnitudes
    int exponent = 0;

    Cost budget(double cost) const {
        const double widened = cost + std::ldexp(total, -budget_slack_bits);
        if (std::abs(widened) > 2 * total) {  // all such budgets mean the same; infinity has no integer
            return widened > 0 ? unlimited : -unlimited;
        }
        return static_cast<Cost>(std::floor(std::ldexp(widened, -exponent)));
    }
};

void check_table(const CostTable& table, std::size_t number, std::span<const std::size_t> sizes) {
    const std::string name = "cost " + std::to_string(number) + ": ";
    if (table.scope.empty() || table.scope.size() > max_rank || table.scope.size() != table.shape.size()) {
        throw std::invalid_argument(name + "expected a scope of 1 to 4 variables and as many dimensions, got " +
                                    std::to_string(table.scope.size()) + " and " + std::to_string(table.shape.size()));
    }
    std::size_t size = 1;
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
        size *= table.shape[i];
    }
    if (table.cost.size() != size) {
        throw std::invalid_argument(name + "the number of entries contradicts the shape");
    }
    for (const double cost : table.cost) {
        if (std::isnan(cost) || cost == -infinity) {
            throw std::invalid_argument(name + "entries must be numbers or +infinity, not " + text(cost));
        }
    }
}

double largest_magnitude(std::span<const double> costs) {
    double result = 0.0;
    for (const double cost : costs) {
        result = std::isinf(cost) ? result : std::max(result, std::abs(cost));
    }
    return result;
}

Scaled scale(std::span<const std::size_t> sizes, std::span<const CostTable> tables) {
    for (std::size_t v = 0; v < sizes.size(); ++v) {
        if (sizes[v] == 0) {
            throw std::invalid_argument("variable " + std::to_string(v) + " has no options");
        }
    }
    Scaled result;
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
            factor.cost.push_back(std::isinf(cost) ? forbidden : std::llround(std::ldexp(cost, -result.exponent)));
        }
        result.factors.push_back(std::move(factor));
    }
    return result;
}

// Sum in the given order, so that a caller who adds the same entries gets the same number.
double cost_of(std::span<const CostTable> tables, std::span<const std::int64_t> choice) {
    double result = 0.0;
    for (const CostTable& table : tables) {
        std::size_t index = 0;
        for (std::size_t i = 0; i < table.scope.size(); ++i) {
            index = index * table.shape[i] + static_cast<std::size_t>(choice[table.scope[i]]);
        }
        result += table.cost[index];
    }
    return result;
}

double value_of(Values values, std::span<const std::int64_t> choice) {
    double result = 0.0;
    for (std::size_t v = 0; v < values.size(); ++v) {
        result += values[v][static_cast<std::size_t>(choice[v])];
    }
    return result;
}

Cost units_of(std::span<const Factor> factors, std::span<const std::size_t> sizes,
              std::span<const std::int64_t> choice) {
    Cost result = 0;
    for (const Factor& factor : factors) {
        std::size_t index = 0;
        for (const std::size_t variable : factor.scope) {
            index = index * sizes[variable] + static_cast<std::size_t>(choice[variable]);
        }
        result += factor.cost[index];
    }
    return result;
}

std::vector<std::size_t> sizes_of(Values values) {
    std::vector<std::size_t> sizes;
    for (const std::vector<double>& options : values) {
        sizes.push_back(options.size());
    }
    return sizes;
}

void check_values(Values values, const Limits& limits) {
    for (std::size_t v = 0; v < values.size(); ++v) {
        for (const double value : values[v]) {
            if (!std::isfinite(value)) {
                throw std::invalid_argument("variable " + std::to_string(v) + ": values must be finite, not " +
                                            text(value));
            }
        }
    }
    if (std::isnan(limits.budget) || !(limits.tolerance >= 0.0) || std::isnan(limits.seconds)) {
        throw std::invalid_argument("budget and seconds must be numbers and tolerance at least 0, got " +
                                    text(limits.budget) + ", " + text(limits.seconds) + " and " +
                                    text(limits.tolerance));
    }
}

// The state of one call of solve().
class Solver {
  public:
    Solver(Values values, std::span<const CostTable> tables, const Limits& limits)
        : values_(values), tables_(tables), limits_(limits), sizes_(sizes_of(values)) {
        const double allowed = std::clamp(limits.seconds, 0.0, 1e8);
        deadline_ = std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                           std::chrono::duration<double>(allowed));
        check_values(values, limits);
        scaled_ = scale(sizes_, tables);
        budget_ = scaled_.budget(limits.budget);
        tree_ = eliminate(sizes_, scaled_.factors);
        for (const std::vector<double>& options : values) {
            slack_ += value_slack * largest_magnitude(options);
        }
    }

    Solution run() {
        start_cheapest();
        const double price = best_price();
        if (!closed()) {
            close_gap(price);
        }
        best_.cost = cost_of(tables_, best_.choice);
        best_.bound = std::max(best_.bound, best_.value);
        // Rounding: what is equal within the slack is reported as equal.
        if (best_.bound - best_.value <= 2 * slack_) {
            best_.bound = best_.value;
        }
        return std::move(best_);
    }

  private:
    struct Point {
        double value;
        Cost cost;
    };

    // The value that is good enough to stop, given the best known solution.
    double accepted() const { return best_.value + slack_ + limits_.tolerance * std::abs(best_.value); }
    bool closed() const { return best_.bound <= accepted(); }

    void offer(std::vector<std::int64_t> choice) {
        const double value = value_of(values_, choice);
        if (best_.choice.empty() || value > best_.value) {
            best_.choice = std::move(choice);
            best_.value = value;
        }
    }

    void start_cheapest() {
        cheapest_ = cheapest(tree_);
        if (cheapest_.total() == impossible<Cost>) {
            throw Infeasible("every combination of options is forbidden");
        }
        std::vector<std::int64_t> choice = decode(cheapest_, tree_);
        if (-cheapest_.total() > budget_) {
            throw Infeasible("the smallest possible cost is " + text(cost_of(tables_, choice)) + ", above the budget " +
                             text(limits_.budget));
        }
        best_.bound = infinity;
        offer(std::move(choice));
    }

    // The relaxation's solution at `price`; lowers the bound, and offers the solution where it fits.
    Point relaxed(double price) {
        const Messages<double> messages = relax(tree_, values_, price);
        best_.bound = std::min(best_.bound, messages.total() + price * static_cast<double>(budget_));
        std::vector<std::int64_t> choice = decode(messages, tree_);
        const Point point{value_of(values_, choice), units_of(scaled_.factors, sizes_, choice)};
        if (point.cost <= budget_) {
            offer(std::move(choice));
        }
        return point;
    }

    // The price of cost with the smallest bound, found by walking the upper hull of (cost, value): the next price
    // is the slope between the best solution known on either side of the budget.
    double best_price() {
        Point above = relaxed(0.0);
        if (above.cost <= budget_) {
            return 0.0;
        }
        Point below{best_.value, units_of(scaled_.factors, sizes_, best_.choice)};
        double price = 0.0;
        for (int step = 0; step < max_price_steps && !closed(); ++step) {
            price = (above.value - below.value) / static_cast<double>(above.cost - below.cost);
            const Point point = relaxed(price);
            const auto gain = [&](const Point& p) { return p.value - price * static_cast<double>(p.cost); };
            if (gain(point) <= std::max(gain(above), gain(below)) + slack_) {
                break;
            }
            (point.cost <= budget_ ? below : above) = point;
        }
        return price;
    }

    void close_gap(double price) {
        add_outside(cheapest_, tree_);
        Messages<double> messages = relax(tree_, values_, price);
        add_outside(messages, tree_, values_, price);
        for (const std::size_t beam : beams) {
            const SearchSpace space{tree_, values_, budget_, messages, price, cheapest_, accepted(), deadline_};
            std::optional<SearchResult> found = search_fronts(space, beam);
            if (!found) {
                return;
            }
            if (found->choice) {
                offer(std::move(*found->choice));
            }
            // Everything is either below what was accepted, or found, or was cut by the beam.
            best_.bound = std::min(best_.bound, std::max({space.accepted, best_.value, found->left_out}));
            if (closed()) {
                return;
            }
        }
    }

    static constexpr std::size_t beams[] = {8, 64, 512, 4096, 32768, std::numeric_limits<std::size_t>::max()};

    Values values_;
    std::span<const CostTable> tables_;
    Limits limits_;
    std::vector<std::size_t> sizes_;
    std::chrono::steady_clock::time_point deadline_;
    Scaled scaled_;
    Cost budget_ = 0;
    Tree tree_;
    Messages<Cost> cheapest_;
    double slack_ = 0.0;
    Solution best_;
};

}  // namespace

Solution solve(std::span<const std::vector<double>> values, std::span<const CostTable> tables, const Limits& limits) {
    return Solver(values, tables, limits).run();
}

Solution minimum_cost(std::span<const std::size_t> sizes, std::span<const CostTable> tables) {
    const Scaled scaled = scale(sizes, tables);
    const Tree tree = eliminate(sizes, scaled.factors);
    const Messages<Cost> messages = cheapest(tree);
    if (messages.total() == impossible<Cost>) {
        throw Infeasible("every combination of options is forbidden");
    }
    Solution result;
    result.choice = decode(messages, tree);
    result.cost = cost_of(tables, result.choice);
    return result;
}

}  // namespace deploy
