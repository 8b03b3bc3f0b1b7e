#include "core/states.hpp"

#include <algorithm>
#include <utility>

namespace deploy {
namespace {

constexpr std::size_t bins_per_place = 4;

// In place of sorting many states: of those whose values fall into one of `count` equal steps, the smallest cost and
// the largest value go on as one. What is left ascends in cost and in value.
void bin(Front& front, std::size_t count) {
    const auto [low, high] = std::ranges::minmax(front, {}, &State::value);
    const double start = low.value;
    const double scale = high.value > start ? static_cast<double>(count - 1) / (high.value - start) : 0.0;
    Front bins(count, State{forbidden, impossible, {0, no_link}});
    for (const State& state : front) {
        State& into = bins[std::min(count - 1, static_cast<std::size_t>((state.value - start) * scale))];
        if (state.cost < into.cost) {
            into.cost = state.cost;
            into.link = state.link;
        }
        into.value = std::max(into.value, state.value);
    }
    // From the largest value down, what does not cost less is dominated.
    Cost least = forbidden;
    front.clear();
    for (std::size_t i = bins.size(); i-- > 0;) {
        if (bins[i].cost < least) {
            least = bins[i].cost;
            front.push_back(bins[i]);
        }
    }
    std::ranges::reverse(front);
}

}  // namespace

void drop_dominated(Front& front) {
    std::ranges::sort(
        front, [](const State& a, const State& b) { return a.cost != b.cost ? a.cost < b.cost : a.value > b.value; });
    double best = impossible;
    std::erase_if(front,
                  [&](const State& state) { return state.value <= std::exchange(best, std::max(best, state.value)); });
}

void merge(Front& front, std::size_t size) {
    if (front.size() / bins_per_place > size) {
        bin(front, bins_per_place * size);
    } else {
        drop_dominated(front);
    }
    if (front.size() <= size) {
        return;
    }
    const double width = (front.back().value - front.front().value) / static_cast<double>(size);
    double first = 0.0;
    std::size_t groups = 0;
    for (std::size_t i = 0; i < front.size(); ++i) {
        if (i > 0 && front[i].value - first <= width) {
            front[groups - 1].value = front[i].value;
        } else {
            first = front[i].value;
            front[groups++] = front[i];  // the first of a group is what its cost and links stand for
        }
    }
    front.resize(groups);
}

double keep_best(Front& front, std::span<const double> scores, std::size_t size) {
    std::vector<std::pair<double, std::size_t>> ranking;
    for (std::size_t i = 0; i < front.size(); ++i) {
        ranking.emplace_back(-scores[i], i);
    }
    const auto cut = ranking.begin() + static_cast<std::ptrdiff_t>(size);
    std::ranges::nth_element(ranking, cut);
    const double dropped = -cut->first;
    std::vector<std::size_t> kept;
    std::transform(ranking.begin(), cut, std::back_inserter(kept), [](const auto& entry) { return entry.second; });
    std::ranges::sort(kept);
    for (std::size_t i = 0; i < kept.size(); ++i) {
        front[i] = front[kept[i]];
    }
    front.resize(size);
    return dropped;
}

}  // namespace deploy
