#include "core/hull.hpp"

#include <algorithm>
#include <limits>

namespace deploy {
namespace {

constexpr int max_steps = 200;

}  // namespace

Hull::Hull(const Tree& tree, const Messages& cheapest, double slack) : tree_(tree), slack_(slack) {
    points_.push_back(point_of(cheapest));
}

Point Hull::point_of(const Messages& messages) const {
    Point point{decode(messages, tree_), 0.0, 0.0};
    std::vector<std::size_t> separator(tree_.buckets.size(), 0);
    for (std::size_t i = tree_.buckets.size(); i-- > 0;) {
        const Bucket& bucket = tree_.buckets[i];
        const std::size_t assignment = separator[i] * bucket.options + messages.best[i][separator[i]];
        point.value += bucket.value_at(assignment);
        point.cost += bucket.cost[assignment];
        for (std::size_t j = 0; j < bucket.children.size(); ++j) {
            separator[bucket.children[j]] = bucket.child_index[j][assignment];
        }
    }
    return point;
}

const Point& Hull::look(double price) {
    const Messages messages = relax(tree_, {1.0, price});
    lines_.push_back({price, messages.total()});
    points_.push_back(point_of(messages));
    return points_.back();
}

// The next price is the slope between the best solutions known on either side of the budget.
double Hull::refine(Cost budget, double start) {
    if (start > 0.0) {
        look(start);
    }
    const Point* above = nullptr;
    double price = 0.0;
    for (int step = 0; step < max_steps; ++step) {
        const Point* below = nullptr;
        above = nullptr;
        for (const Point& point : points_) {
            const Point*& side = point.cost <= budget ? below : above;
            const bool better = !side || (point.cost <= budget ? point.value > side->value : point.cost < side->cost);
            side = better ? &point : side;
        }
        if (!above) {
            if (std::ranges::any_of(lines_, [](const Line& line) { return line.price == 0.0; })) {
                return 0.0;
            }
            look(0.0);
            continue;
        }
        price = std::max(0.0, (above->value - below->value) / (above->cost - below->cost));
        const double known = std::max(above->value - price * above->cost, below->value - price * below->cost);
        const Point& point = look(price);
        if (point.value - price * point.cost <= known + slack_) {
            break;
        }
    }
    return price;
}

double Hull::bound(Cost budget) const {
    double result = std::numeric_limits<double>::infinity();
    for (const Line& line : lines_) {
        result = std::min(result, line.total + line.price * budget);
    }
    return result;
}

}  // namespace deploy
