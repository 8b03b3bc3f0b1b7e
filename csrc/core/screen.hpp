#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "core/fronts.hpp"
#include "core/states.hpp"

namespace deploy {

// Which states of a front are worth enough at every price; blocks of states that are not are passed over together.
class Screen {
  public:
    static constexpr std::size_t block = 16;

    void prepare(const Front& front, std::span<const Relaxed> relaxed);
    std::size_t blocks() const { return largest_.size() / prices_; }
    // Whether the gains value - price * cost of state `i` are above `least`, the bounds for each price.
    bool passes(std::size_t i, const std::vector<double>& least) const { return above(&gains_[i * prices_], least); }
    // Whether a state of the block that begins with `start` may.
    bool block_passes(std::size_t start, const std::vector<double>& least) const {
        return above(&largest_[start / block * prices_], least);
    }

  private:
    bool above(const double* gains, const std::vector<double>& least) const {
        for (std::size_t k = 0; k < prices_; ++k) {
            if (!(gains[k] > least[k])) {
                return false;
            }
        }
        return true;
    }

    std::size_t prices_ = 1;
    std::vector<double> gains_;    // of each state at each price
    std::vector<double> largest_;  // of each block at each price
};

}  // namespace deploy
