#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/problem.hpp"
#include "core/solver.hpp"

namespace deploy {

// A problem in exact units of 2^exponent.
struct Scaled {
    Problem problem;
    double total = 0.0;  // sum of the largest magnitudes of the costs, not in units
    int exponent = 0;

    // The largest cost in units that counts as within `budget`.
    Cost budget(double budget) const;
};

// Checks everything; throws std::invalid_argument with the place and what was expected.
Scaled scale(std::span<const std::vector<double>> values, std::span<const CostTable> tables,
             std::span<const Dependence> dependences);

std::string text(double number);
double largest_magnitude(std::span<const double> numbers);  // of the finite ones

}  // namespace deploy
