#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace deploy {

// Whole numbers in a unit that the solver chooses, small enough for sums to be exact; infinite where forbidden.
using Cost = double;
inline constexpr Cost forbidden = std::numeric_limits<Cost>::infinity();

// A cost that depends on the options of a few variables.
struct Factor {
    std::vector<std::size_t> scope;
    std::vector<Cost> cost;  // row-major over the options of `scope`
};

// A variable that two others decide.
struct Function {
    std::size_t variable = 0;
    std::size_t first = 0;
    std::size_t second = 0;
    std::vector<std::uint32_t> option;  // of `variable`, row-major over the options of `first` and `second`
};

// Where a restriction has taken away the option that two others ask for.
inline constexpr std::uint32_t no_option = std::numeric_limits<std::uint32_t>::max();

struct Problem {
    std::vector<std::vector<double>> values;  // per variable and option
    std::vector<Factor> factors;
    std::vector<Function> functions;
    std::vector<std::size_t> sizes() const;
    double value_of(std::span<const std::int64_t> choice) const;
};

// The options of each variable that are left, ascending.
using Domains = std::vector<std::vector<std::uint32_t>>;

Domains all_options(const Problem& problem);

// `problem` with the options in `domains` only, numbered anew.
Problem restricted(const Problem& problem, const Domains& domains);

}  // namespace deploy
