#include "core/screen.hpp"

#include <algorithm>

namespace deploy {

void Screen::prepare(const Front& front, std::span<const Relaxed> relaxed) {
    prices_ = relaxed.size();
    gains_.resize(prices_ * front.size());
    largest_.assign(prices_ * ((front.size() + block - 1) / block), impossible);
    for (std::size_t k = 0; k < prices_; ++k) {
        for (std::size_t i = 0; i < front.size(); ++i) {
            const double gain = front[i].value - relaxed[k].price * front[i].cost;
            gains_[i * prices_ + k] = gain;
            double& most = largest_[i / block * prices_ + k];
            most = std::max(most, gain);
        }
    }
}

}  // namespace deploy
