#include "core/branching.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "core/fronts.hpp"

namespace deploy {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double price_steps[] = {1.0, 0.75, 1.35, 0.5, 2.0};
constexpr std::size_t search_prices = 3;  // the first of them bound the states of a search, too
constexpr Beam beams[] = {{8, Cut::best},
                          {64, Cut::best},
                          {512, Cut::merge},
                          {2048, Cut::merge},
                          {8192, Cut::merge},
                          {32768, Cut::merge},
                          {std::numeric_limits<std::size_t>::max(), Cut::merge}};
constexpr double below_one = 1.0 - 1e-9;  // so that rounding does not carry a gap beyond the tolerance
constexpr double worth_restarting = 0.8;  // the share of options left below which their bounds are computed anew

std::size_t alternatives(const Domains& domains) {
    std::size_t result = 0;
    for (const std::vector<std::uint32_t>& options : domains) {
        result += options.size() - 1;
    }
    return result;
}

// Two halves of a node's options of one variable.
struct Halves {
    double larger_bound = infinity;
    double smaller_bound = infinity;
    std::size_t unevenness = 0;
    std::size_t variable = 0;
    std::size_t place = 0;
    bool upper_is_larger = false;
    auto rank() const { return std::tuple(larger_bound, smaller_bound, unevenness, variable, place); }
};

// One call of solve_node().
class NodeSolver {
  public:
    NodeSolver(const Instance& instance, double bound, double price, double incumbent, Effort effort)
        : instance_(instance), bound_(bound), price_(price), incumbent_(incumbent), effort_(effort) {}

    void run(const Subproblem& subproblem);
    void run_with_hull(const Subproblem& subproblem, const Hull& hull);
    NodeResult take_result() { return std::move(result_); }

  private:
    bool closed() const { return bound_ <= instance_.cutoff(incumbent_); }
    void offer(const Subproblem& subproblem, const std::vector<std::int64_t>& choice, double value);
    void bound_options(const Subproblem& subproblem);
    std::optional<Domains> reduced(const Domains& domains) const;
    void search(const Subproblem& subproblem);
    void split(const Subproblem& subproblem, const Domains& left);
    Halves best_halves(const Subproblem& subproblem) const;

    const Instance& instance_;
    double bound_;
    double price_;
    double incumbent_;
    Effort effort_;
    Marginals option_bounds_;
    std::vector<Relaxed> relaxed_;  // at price_ and around it
    NodeResult result_;
};

void NodeSolver::offer(const Subproblem& subproblem, const std::vector<std::int64_t>& choice, double value) {
    if (value <= incumbent_) {
        return;
    }
    incumbent_ = result_.value = value;
    result_.choice = choice;
    for (std::size_t v = 0; v < choice.size(); ++v) {
        result_.choice[v] = subproblem.domains[v][static_cast<std::size_t>(choice[v])];
    }
}

void NodeSolver::run(const Subproblem& subproblem) {
    if (subproblem.possible(instance_.budget)) {
        Hull hull(subproblem.tree, subproblem.cheapest, instance_.slack);
        price_ = hull.refine(instance_.budget, price_);
        run_with_hull(subproblem, hull);
    }
}

void NodeSolver::run_with_hull(const Subproblem& subproblem, const Hull& hull) {
    for (const Point& point : hull.points()) {
        if (point.cost <= instance_.budget) {
            offer(subproblem, point.choice, point.value);
        }
    }
    bound_ = std::min(bound_, hull.bound(instance_.budget));
    if (!closed()) {
        bound_options(subproblem);
    }
    if (!closed()) {
        const std::optional<Domains> left = reduced(subproblem.domains);
        const auto before = static_cast<double>(alternatives(subproblem.domains));
        if (left && static_cast<double>(alternatives(*left)) < worth_restarting * before) {
            return run(Subproblem(instance_.whole, instance_.order, *left));
        }
        search(subproblem);
    }
    const std::optional<Domains> left = closed() ? std::nullopt : reduced(subproblem.domains);
    if (left) {
        split(subproblem, *left);
    } else {
        result_.closed_bound = std::max(result_.closed_bound, std::min(bound_, instance_.cutoff(incumbent_)));
    }
}

// Bound what each option allows, at the price where that is smallest.
void NodeSolver::bound_options(const Subproblem& subproblem) {
    option_bounds_.clear();
    relaxed_.clear();
    for (const double step : price_steps) {
        const Gain gain{1.0, price_ * step};
        const double at_budget = gain.price * instance_.budget;
        Messages messages = relax(subproblem.tree, gain);
        const Marginals marginals = add_outside(messages, subproblem.tree, gain, subproblem.sizes);
        if (relaxed_.size() < search_prices) {
            relaxed_.push_back({gain.price, std::move(messages)});
        }
        option_bounds_.resize(marginals.size());
        for (std::size_t v = 0; v < marginals.size(); ++v) {
            option_bounds_[v].resize(marginals[v].size(), infinity);
            for (std::size_t x = 0; x < marginals[v].size(); ++x) {
                option_bounds_[v][x] = std::min(option_bounds_[v][x], marginals[v][x] + at_budget);
            }
        }
        if (price_ == 0.0) {
            break;
        }
    }
    for (const std::vector<double>& bounds : option_bounds_) {
        bound_ = std::min(bound_, std::ranges::max(bounds));
    }
}

// The options whose bounds exceed the cutoff; nothing where a variable has none.
std::optional<Domains> NodeSolver::reduced(const Domains& domains) const {
    const double cutoff = instance_.cutoff(incumbent_);
    Domains result(domains.size());
    for (std::size_t v = 0; v < domains.size(); ++v) {
        for (std::size_t x = 0; x < domains[v].size(); ++x) {
            if (option_bounds_[v][x] > cutoff) {
                result[v].push_back(domains[v][x]);
            }
        }
        if (result[v].empty()) {
            return std::nullopt;
        }
    }
    return result;
}

void NodeSolver::search(const Subproblem& subproblem) {
    Messages cheapest = subproblem.cheapest;
    add_outside(cheapest, subproblem.tree, {0.0, 1.0}, subproblem.sizes);
    for (const Beam beam : beams) {
        const double cutoff = instance_.cutoff(incumbent_);
        const std::optional<SearchResult> found =
            search_fronts({subproblem.problem, subproblem.tree, instance_.budget, relaxed_, cheapest, cutoff,
                           effort_.steps, instance_.deadline, effort_.threads},
                          beam);
        if (!found) {
            return;
        }
        effort_.steps -= std::min(effort_.steps, found->steps);
        if (found->choice) {
            offer(subproblem, *found->choice, found->value);
        }
        bound_ = std::min(bound_, std::max(cutoff, found->bound));
        if (closed()) {
            return;
        }
    }
}

void NodeSolver::split(const Subproblem& subproblem, const Domains& left) {
    const Halves cut = best_halves(subproblem);
    if (cut.larger_bound == infinity || Clock::now() > instance_.deadline) {
        result_.open.push_back({left, bound_, price_});
        return;
    }
    const std::uint32_t first = subproblem.domains[cut.variable][cut.place];
    for (const bool upper : {false, true}) {
        Node node{left, upper == cut.upper_is_larger ? cut.larger_bound : cut.smaller_bound, price_};
        node.bound = std::min(node.bound, bound_);
        std::erase_if(node.domains[cut.variable], [&](std::uint32_t option) { return (option >= first) != upper; });
        result_.open.push_back(std::move(node));
    }
}

// The cut whose halves have the smallest bounds; both halves stay open.
Halves NodeSolver::best_halves(const Subproblem& subproblem) const {
    const double cutoff = instance_.cutoff(incumbent_);
    Halves best;
    for (std::size_t v = 0; v < subproblem.sizes.size(); ++v) {
        const std::vector<double>& bounds = option_bounds_[v];
        std::vector<double> above = bounds;  // the largest from here on
        for (std::size_t x = above.size() - 1; x-- > 0;) {
            above[x] = std::max(above[x], above[x + 1]);
        }
        double below = impossible;
        for (std::size_t x = 1; x < bounds.size(); ++x) {
            below = std::max(below, bounds[x - 1]);
            const auto [smaller, larger] = std::minmax(below, above[x]);
            const std::size_t unevenness = std::max(x, bounds.size() - x) - std::min(x, bounds.size() - x);
            const Halves cut{larger, smaller, unevenness, v, x, above[x] >= below};
            if (smaller > cutoff && cut.rank() < best.rank()) {
                best = cut;
            }
        }
    }
    return best;
}

}  // namespace

Subproblem::Subproblem(const Problem& whole, const Order& order, Domains left)
    : domains(std::move(left)),
      problem(restricted(whole, domains)),
      sizes(problem.sizes()),
      tree(eliminate(problem, order)),
      cheapest(relax(tree, {0.0, 1.0})) {}

double Instance::cutoff(double value) const {
    return value + std::max(slack, tolerance * below_one * std::abs(value));
}

NodeResult solve_node(const Instance& instance, const Node& node, double incumbent, Effort effort) {
    NodeSolver solver(instance, node.bound, node.price, incumbent, effort);
    solver.run(Subproblem(instance.whole, instance.order, node.domains));
    return solver.take_result();
}

NodeResult solve_node(const Instance& instance, const Subproblem& subproblem, const Hull& hull, double price,
                      Effort effort) {
    NodeSolver solver(instance, infinity, price, impossible, effort);
    solver.run_with_hull(subproblem, hull);
    return solver.take_result();
}

}  // namespace deploy
