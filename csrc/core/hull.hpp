#pragma once

#include <cstdint>
#include <vector>

#include "core/relaxation.hpp"

namespace deploy {

// A complete assignment.
struct Point {
    std::vector<std::int64_t> choice;
    double value = 0.0;
    Cost cost = 0.0;
};

// The upper hull of the (cost, value) of all assignments, as far as it was looked at: solutions of the Lagrangian
// relaxation (Everett 1963) at some prices. For any price p, no assignment of at most cost b has a value above
// max(value - p * cost) + p * b.
class Hull {
  public:
    // `cheapest` are the messages of gains {0, 1}, their total possible; values within `slack` count as equal.
    Hull(const Tree& tree, const Messages& cheapest, double slack);

    // Looks at prices until the bound for `budget`, at least the smallest cost, is the smallest over all prices;
    // returns that price. `start` is a guess.
    double refine(Cost budget, double start = 0.0);

    double bound(Cost budget) const;
    const std::vector<Point>& points() const { return points_; }

  private:
    struct Line {
        double price;
        double total;
    };

    const Point& look(double price);
    Point point_of(const Messages& messages) const;

    const Tree& tree_;
    double slack_;
    std::vector<Point> points_;
    std::vector<Line> lines_;
};

}  // namespace deploy
