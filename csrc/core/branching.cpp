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

// One call of settle().
class Settling {
  public:
    Settling(const Question& question, double bound, double price, double known, Effort effort)
        : question_(question), bound_(bound), price_(price), known_(known), effort_(effort) {}

    void part(const Part& part);
    void part_with_hull(const Part& part, const Hull& hull);
    Answer answer() { return std::move(answer_); }

  private:
    bool closed() const { return bound_ <= question_.accepted(known_); }
    void offer(const Part& part, const std::vector<std::int64_t>& choice, double value);
    void bound_options(const Part& part);
    std::optional<Domains> hopeful(const Domains& domains) const;
    void search(const Part& part);
    void split(const Part& part, const Domains& left);
    Halves best_halves(const Part& part) const;

    const Question& question_;
    double bound_;
    double price_;
    double known_;
    Effort effort_;
    Marginals option_bounds_;
    std::vector<Relaxed> relaxed_;  // at price_ and around it
    Answer answer_;
};

void Settling::offer(const Part& part, const std::vector<std::int64_t>& choice, double value) {
    if (value <= known_) {
        return;
    }
    known_ = answer_.value = value;
    answer_.choice = choice;
    for (std::size_t v = 0; v < choice.size(); ++v) {
        answer_.choice[v] = part.domains[v][static_cast<std::size_t>(choice[v])];
    }
}

void Settling::part(const Part& part) {
    if (part.possible(question_.budget)) {
        Hull hull(part.tree, part.cheapest, question_.slack);
        price_ = hull.refine(question_.budget, price_);
        part_with_hull(part, hull);
    }
}

void Settling::part_with_hull(const Part& part, const Hull& hull) {
    for (const Point& point : hull.points()) {
        if (point.cost <= question_.budget) {
            offer(part, point.choice, point.value);
        }
    }
    bound_ = std::min(bound_, hull.bound(question_.budget));
    if (!closed()) {
        bound_options(part);
    }
    if (!closed()) {
        const std::optional<Domains> left = hopeful(part.domains);
        const auto before = static_cast<double>(alternatives(part.domains));
        if (left && static_cast<double>(alternatives(*left)) < worth_restarting * before) {
            return this->part(Part(question_.whole, question_.order, *left));
        }
        search(part);
    }
    const std::optional<Domains> left = closed() ? std::nullopt : hopeful(part.domains);
    if (left) {
        split(part, *left);
    } else {
        answer_.settled = std::max(answer_.settled, std::min(bound_, question_.accepted(known_)));
    }
}

// Bound what each option allows, at the price where that is smallest.
void Settling::bound_options(const Part& part) {
    option_bounds_.clear();
    relaxed_.clear();
    for (const double step : price_steps) {
        const Gain gain{1.0, price_ * step};
        const double at_budget = gain.price * question_.budget;
        Messages messages = relax(part.tree, gain);
        const Marginals marginals = add_outside(messages, part.tree, gain, part.sizes);
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

// The options that may lead to something better; nothing where a variable has none.
std::optional<Domains> Settling::hopeful(const Domains& domains) const {
    const double accepted = question_.accepted(known_);
    Domains result(domains.size());
    for (std::size_t v = 0; v < domains.size(); ++v) {
        for (std::size_t x = 0; x < domains[v].size(); ++x) {
            if (option_bounds_[v][x] > accepted) {
                result[v].push_back(domains[v][x]);
            }
        }
        if (result[v].empty()) {
            return std::nullopt;
        }
    }
    return result;
}

void Settling::search(const Part& part) {
    Messages cheapest = part.cheapest;
    add_outside(cheapest, part.tree, {0.0, 1.0}, part.sizes);
    for (const Beam beam : beams) {
        const double accepted = question_.accepted(known_);
        const std::optional<SearchResult> found =
            search_fronts({part.problem, part.tree, question_.budget, relaxed_, cheapest, accepted, effort_.steps,
                           question_.deadline, effort_.threads},
                          beam);
        if (!found) {
            return;
        }
        effort_.steps -= std::min(effort_.steps, found->steps);
        if (found->choice) {
            offer(part, *found->choice, found->value);
        }
        bound_ = std::min(bound_, std::max(accepted, found->bound));
        if (closed()) {
            return;
        }
    }
}

void Settling::split(const Part& part, const Domains& left) {
    const Halves cut = best_halves(part);
    if (cut.larger_bound == infinity || Clock::now() > question_.deadline) {
        answer_.open.push_back({left, bound_, price_});
        return;
    }
    const std::uint32_t first = part.domains[cut.variable][cut.place];
    for (const bool upper : {false, true}) {
        Node node{left, upper == cut.upper_is_larger ? cut.larger_bound : cut.smaller_bound, price_};
        node.bound = std::min(node.bound, bound_);
        std::erase_if(node.domains[cut.variable], [&](std::uint32_t option) { return (option >= first) != upper; });
        answer_.open.push_back(std::move(node));
    }
}

// The cut whose halves have the smallest bounds; both halves are hopeful.
Halves Settling::best_halves(const Part& part) const {
    const double accepted = question_.accepted(known_);
    Halves best;
    for (std::size_t v = 0; v < part.sizes.size(); ++v) {
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
            if (smaller > accepted && cut.rank() < best.rank()) {
                best = cut;
            }
        }
    }
    return best;
}

}  // namespace

Part::Part(const Problem& whole, const Order& order, Domains left)
    : domains(std::move(left)),
      problem(restricted(whole, domains)),
      sizes(problem.sizes()),
      tree(eliminate(problem, order)),
      cheapest(relax(tree, {0.0, 1.0})) {}

double Question::accepted(double value) const {
    return value + std::max(slack, tolerance * below_one * std::abs(value));
}

Answer settle(const Question& question, const Node& node, double known, Effort effort) {
    Settling settling(question, node.bound, node.price, known, effort);
    settling.part(Part(question.whole, question.order, node.domains));
    return settling.answer();
}

Answer settle(const Question& question, const Part& part, const Hull& hull, double price, Effort effort) {
    Settling settling(question, infinity, price, impossible, effort);
    settling.part_with_hull(part, hull);
    return settling.answer();
}

}  // namespace deploy
