#include "core/solver.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <utility>

#include "core/branching.hpp"
#include "core/errors.hpp"
#include "core/scaling.hpp"
#include "core/threads.hpp"

namespace deploy {
namespace {

constexpr double value_slack = 1e-12;         // relative to the total of all values
constexpr std::size_t root_steps = 50000000;  // about half a second
constexpr std::size_t node_steps = 2000000;
constexpr std::size_t patience = 64;  // nodes after which as many steps more are allowed for each
constexpr std::size_t batch = 4;      // nodes solved side by side, whatever the number of threads

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

void check(std::span<const double> budgets, const Limits& limits) {
    for (const double budget : budgets) {
        if (std::isnan(budget) || !(limits.tolerance >= 0.0) || std::isnan(limits.seconds)) {
            throw std::invalid_argument("budget and seconds must be numbers and tolerance at least 0, got " +
                                        text(budget) + ", " + text(limits.seconds) + " and " + text(limits.tolerance));
        }
    }
}

// Branch and bound for one budget.
class BranchAndBound {
  public:
    BranchAndBound(const Instance& instance, int threads) : instance_(instance), threads_(threads) {}

    void add(NodeResult result) {
        if (!result.choice.empty() && result.value > value_) {
            value_ = result.value;
            choice_ = std::move(result.choice);
        }
        closed_bound_ = std::max(closed_bound_, result.closed_bound);
        for (Node& node : result.open) {
            open_.push_back(std::move(node));
            std::ranges::push_heap(open_, {}, &Node::bound);
        }
    }

    void run() {
        std::size_t count = 0;
        while (Clock::now() < instance_.deadline) {
            const std::vector<Node> nodes = next();
            if (nodes.empty()) {
                break;
            }
            const std::size_t steps = node_steps * (1 + count / patience);
            std::vector<NodeResult> results(nodes.size());
            parallel_for(nodes.size(), threads_,
                         [&](std::size_t i) { results[i] = solve_node(instance_, nodes[i], value_, {steps, 1}); });
            for (NodeResult& result : results) {
                add(std::move(result));
            }
            count += nodes.size();
        }
    }

    const std::vector<std::int64_t>& choice() const { return choice_; }
    double bound() const { return open_.empty() ? closed_bound_ : std::max(closed_bound_, open_.front().bound); }

  private:
    // The open nodes with the highest bounds; drops those that hold nothing better.
    std::vector<Node> next() {
        std::vector<Node> result;
        while (!open_.empty() && result.size() < batch) {
            std::ranges::pop_heap(open_, {}, &Node::bound);
            if (open_.back().bound > instance_.cutoff(value_)) {
                result.push_back(std::move(open_.back()));
            } else {
                closed_bound_ = std::max(closed_bound_, open_.back().bound);
            }
            open_.pop_back();
        }
        return result;
    }

    const Instance& instance_;
    int threads_;
    std::vector<std::int64_t> choice_;
    double value_ = impossible;
    double closed_bound_ = impossible;
    std::vector<Node> open_;  // a heap
};

// What all budgets share.
class Solver {
  public:
    Solver(std::span<const std::vector<double>> values, std::span<const CostTable> tables,
           std::span<const Dependence> dependences, const Limits& limits)
        : tables_(tables),
          limits_(limits),
          scaled_(scale(values, tables, dependences)),
          order_(elimination_order(scaled_.problem)),
          root_(scaled_.problem, order_, all_options(scaled_.problem)) {
        for (const std::vector<double>& options : values) {
            slack_ += value_slack * largest_magnitude(options);
        }
        if (root_.cheapest.total() == impossible) {
            throw Infeasible("every combination of options is forbidden");
        }
    }

    std::vector<Solution> run(std::span<const double> budgets) {
        Hull hull(root_.tree, root_.cheapest, slack_);
        std::vector<double> prices;
        for (const double budget : budgets) {
            if (!root_.possible(scaled_.budget(budget))) {
                throw Infeasible("the smallest possible cost is " +
                                 text(cost_of(tables_, hull.points().front().choice)) + ", above the budget " +
                                 text(budget));
            }
            prices.push_back(hull.refine(scaled_.budget(budget)));
        }
        const int threads = thread_count(limits_.threads);
        const bool several = budgets.size() > 1;
        std::vector<Solution> result(budgets.size());
        parallel_for(budgets.size(), several ? threads : 1,
                     [&](std::size_t i) { result[i] = solve(hull, budgets[i], prices[i], several ? 1 : threads); });
        return result;
    }

  private:
    Clock::time_point deadline() const {
        const double allowed = std::clamp(limits_.seconds, 0.0, 1e8);
        return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(allowed));
    }

    Solution solve(const Hull& hull, double budget, double price, int threads) const {
        const Instance instance{scaled_.problem, order_, scaled_.budget(budget), limits_.tolerance, slack_, deadline()};
        BranchAndBound search(instance, threads);
        search.add(solve_node(instance, root_, hull, price, {root_steps, threads}));
        search.run();
        Solution result;
        result.choice = search.choice();
        result.value = scaled_.problem.value_of(result.choice);
        result.cost = cost_of(tables_, result.choice);
        result.bound = std::max(search.bound(), result.value);
        // Rounding: what is equal within the slack is reported as equal.
        if (result.bound - result.value <= 2 * slack_) {
            result.bound = result.value;
        }
        return result;
    }

    std::span<const CostTable> tables_;
    Limits limits_;
    Scaled scaled_;
    Order order_;
    Subproblem root_;
    double slack_ = 0.0;
};

}  // namespace

std::vector<Solution> solve(std::span<const std::vector<double>> values, std::span<const CostTable> tables,
                            std::span<const Dependence> dependences, std::span<const double> budgets,
                            const Limits& limits) {
    check(budgets, limits);
    return Solver(values, tables, dependences, limits).run(budgets);
}

Solution minimum_cost(std::span<const std::size_t> sizes, std::span<const CostTable> tables,
                      std::span<const Dependence> dependences) {
    std::vector<std::vector<double>> values;
    std::size_t options = 0;
    for (const std::size_t size : sizes) {
        check_entries(size);
        check_entries(options += size);
        values.emplace_back(size, 0.0);
    }
    const Scaled scaled = scale(values, tables, dependences);
    const Subproblem subproblem(scaled.problem, elimination_order(scaled.problem), all_options(scaled.problem));
    if (subproblem.cheapest.total() == impossible) {
        throw Infeasible("every combination of options is forbidden");
    }
    Solution result;
    result.choice = decode(subproblem.cheapest, subproblem.tree);
    result.cost = cost_of(tables, result.choice);
    return result;
}

}  // namespace deploy
