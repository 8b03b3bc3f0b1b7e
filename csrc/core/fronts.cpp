#include "core/fronts.hpp"

#include <algorithm>
#include <utility>

namespace deploy {
namespace {

constexpr std::size_t max_links = std::size_t{1} << 26;   // 8 bytes each
constexpr std::size_t max_states = std::size_t{1} << 24;  // 24 bytes each, of all fronts still needed
constexpr std::size_t steps_per_clock = 4096;

// Two earlier links that were joined. The first links are no pairs but stand for one option of one variable.
struct Link {
    std::uint32_t left;
    std::uint32_t right;
};

struct State {
    Cost cost;
    double value;
    Link link;
};

using Front = std::vector<State>;

constexpr std::uint32_t no_link = std::numeric_limits<std::uint32_t>::max();

struct Stopped {};  // thrown where time or memory runs out; never leaves this file

// The most that a state can still gain outside of what it has decided.
struct Remainder {
    double gain = 0.0;  // relaxed: value less price * cost
    Cost cost = 0;      // at least this much is still to be paid
    bool possible = true;
};

class Search {
  public:
    Search(const SearchSpace& space, std::size_t beam) : space_(space), beam_(beam) {}

    SearchResult run();

  private:
    Front extend(std::size_t bucket, std::size_t assignment);
    Front join(const Front& mine, const Front& theirs, const Remainder& remainder);
    void keep_best(Front& front, const Remainder& remainder);
    Remainder remainder(std::size_t bucket, std::size_t assignment, std::size_t joined) const;
    double bound(const State& state, const Remainder& remainder) const;
    bool hopeful(const State& state, const Remainder& remainder) const;
    std::uint32_t save(const Link& link);
    std::vector<std::int64_t> trace(std::uint32_t link) const;
    void tick(std::size_t steps);

    const SearchSpace& space_;
    std::size_t beam_;
    std::vector<std::size_t> first_link_;  // of each variable's options
    std::vector<Link> links_;
    std::vector<std::vector<Front>> fronts_;  // per bucket and separator assignment
    double left_out_ = -std::numeric_limits<double>::infinity();
    std::size_t steps_ = 0;
};

void Search::tick(std::size_t steps) {
    steps_ += steps;
    if (steps_ >= steps_per_clock) {
        steps_ = 0;
        if (std::chrono::steady_clock::now() > space_.deadline) {
            throw Stopped{};
        }
    }
}

std::uint32_t Search::save(const Link& link) {
    if (link.right == no_link) {
        return link.left;
    }
    if (links_.size() >= max_links) {
        throw Stopped{};
    }
    links_.push_back(link);
    return static_cast<std::uint32_t>(links_.size() - 1);
}

// Of a state that has decided bucket `bucket` at `assignment` and joined its first `joined` children.
Remainder Search::remainder(std::size_t bucket, std::size_t assignment, std::size_t joined) const {
    const Bucket& here = space_.tree.buckets[bucket];
    const auto rest = [&](const auto& messages) {
        auto gain = messages.outside[bucket][assignment / here.options];
        for (std::size_t j = joined; j < here.children.size(); ++j) {
            gain = plus(gain, messages.inside[here.children[j]][here.child_index[j][assignment]]);
        }
        return gain;
    };
    Remainder result;
    const Cost cheapest = rest(space_.cheapest);
    result.possible = cheapest != impossible<Cost>;
    result.cost = result.possible ? -cheapest : 0;
    result.gain = rest(space_.relaxed);
    return result;
}

double Search::bound(const State& state, const Remainder& remainder) const {
    return state.value + remainder.gain + space_.price * static_cast<double>(space_.budget - state.cost);
}

bool Search::hopeful(const State& state, const Remainder& remainder) const {
    return state.cost <= space_.budget - remainder.cost && bound(state, remainder) > space_.accepted;
}

// Drop dominated states, then all but the `beam` most promising; ascending cost and value.
void Search::keep_best(Front& front, const Remainder& remainder) {
    std::ranges::sort(
        front, [](const State& a, const State& b) { return a.cost != b.cost ? a.cost < b.cost : a.value > b.value; });
    double best = -std::numeric_limits<double>::infinity();
    std::erase_if(front,
                  [&](const State& state) { return state.value <= std::exchange(best, std::max(best, state.value)); });
    if (front.size() <= beam_) {
        return;
    }
    std::vector<std::pair<double, std::size_t>> ranking;
    for (std::size_t i = 0; i < front.size(); ++i) {
        ranking.emplace_back(-bound(front[i], remainder), i);
    }
    const auto cut = ranking.begin() + static_cast<std::ptrdiff_t>(beam_);
    std::ranges::nth_element(ranking, cut);
    left_out_ = std::max(left_out_, -cut->first);
    std::vector<std::size_t> kept;
    std::transform(ranking.begin(), cut, std::back_inserter(kept), [](const auto& entry) { return entry.second; });
    std::ranges::sort(kept);
    for (std::size_t i = 0; i < kept.size(); ++i) {
        front[i] = front[kept[i]];
    }
    front.resize(beam_);
}

Front Search::join(const Front& mine, const Front& theirs, const Remainder& remainder) {
    Front result;
    for (const State& a : mine) {
        const std::uint32_t left = save(a.link);
        tick(theirs.size() + 1);
        for (const State& b : theirs) {
            const State joined{a.cost + b.cost, a.value + b.value, {left, b.link.left}};
            if (hopeful(joined, remainder)) {
                result.push_back(joined);
            }
        }
        if (result.size() > max_states) {
            throw Stopped{};
        }
    }
    if (mine.size() > 1) {
        keep_best(result, remainder);
    }
    return result;
}

// All states of bucket `bucket` at one assignment of its variable and separator.
Front Search::extend(std::size_t bucket, std::size_t assignment) {
    const Bucket& here = space_.tree.buckets[bucket];
    const bool root = bucket == space_.tree.root();
    const std::size_t option = assignment % here.options;
    if (here.cost[assignment] == forbidden) {
        return {};
    }
    const double value = root ? 0.0 : space_.values[here.variable][option];
    const auto link = static_cast<std::uint32_t>(root ? 0 : first_link_[here.variable] + option);
    Front front{{here.cost[assignment], value, {link, no_link}}};
    const Remainder all = remainder(bucket, assignment, 0);
    if (!all.possible || !hopeful(front.front(), all)) {
        return {};
    }
    for (std::size_t j = 0; j < here.children.size() && !front.empty(); ++j) {
        const Front& theirs = fronts_[here.children[j]][here.child_index[j][assignment]];
        front = join(front, theirs, remainder(bucket, assignment, j + 1));
    }
    return front;
}

std::vector<std::int64_t> Search::trace(std::uint32_t link) const {
    std::vector<std::int64_t> choice(space_.values.size(), 0);
    std::vector<std::uint32_t> open{link};
    while (!open.empty()) {
        const std::uint32_t id = open.back();
        open.pop_back();
        if (id >= first_link_.back()) {
            open.push_back(links_[id].left);
            open.push_back(links_[id].right);
        } else if (id > 0) {
            const auto after = std::ranges::upper_bound(first_link_, id);
            choice[static_cast<std::size_t>(after - first_link_.begin()) - 1] = id - *(after - 1);
        }
    }
    return choice;
}

SearchResult Search::run() {
    const Tree& tree = space_.tree;
    // Link 0 stands for the root, which decides nothing.
    first_link_.push_back(1);
    for (const std::vector<double>& options : space_.values) {
        first_link_.push_back(first_link_.back() + options.size());
    }
    links_.resize(first_link_.back());
    fronts_.resize(tree.buckets.size());
    std::size_t states = 0;
    for (std::size_t i = 0; i < tree.buckets.size(); ++i) {
        const Bucket& bucket = tree.buckets[i];
        for (std::size_t s = 0; s < bucket.separator_size; ++s) {
            Front front;
            for (std::size_t x = 0; x < bucket.options; ++x) {
                const Front more = extend(i, s * bucket.options + x);
                front.insert(front.end(), more.begin(), more.end());
            }
            tick(front.size() + 1);
            keep_best(front, remainder(i, s * bucket.options, bucket.children.size()));
            for (State& state : front) {
                state.link = {save(state.link), no_link};
            }
            front.shrink_to_fit();
            states += front.size();
            fronts_[i].push_back(std::move(front));
            if (states > max_states) {
                throw Stopped{};
            }
        }
        for (const std::size_t child : bucket.children) {
            for (const Front& front : fronts_[child]) {
                states -= front.size();
            }
            fronts_[child] = {};
        }
    }
    const Front& complete = fronts_.back().front();
    SearchResult result;
    if (!complete.empty()) {
        result.choice = trace(complete.back().link.left);
    }
    result.left_out = left_out_;
    return result;
}

}  // namespace

std::optional<SearchResult> search_fronts(const SearchSpace& space, std::size_t beam) {
    try {
        return Search(space, beam).run();
    } catch (const Stopped&) {
        return std::nullopt;
    }
}

}  // namespace deploy
