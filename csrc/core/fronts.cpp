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
    double gain;  // relaxed: value less price * cost
    Cost cost;    // at least this much is still to be paid; `forbidden` where nothing is possible
};

class Search {
  public:
    Search(const SearchSpace& space, Beam beam) : space_(space), beam_(beam) {}

    SearchResult run();

  private:
    bool twin_follows(std::size_t bucket, std::size_t j) const;
    void join_twins(std::size_t bucket);
    void store(std::size_t bucket, std::size_t s, Front front);
    Front extend(std::size_t bucket, std::size_t assignment);
    Front join(const Front& mine, const Front& theirs, const Remainder& remainder);
    void cut(Front& front, const Remainder& remainder);
    void keep_best(Front& front, const Remainder& remainder);
    void merge(Front& front) const;
    Remainder remainder(std::size_t bucket, std::size_t assignment, std::size_t joined) const;
    double bound(const State& state, const Remainder& remainder) const;
    bool hopeful(const State& state, const Remainder& remainder) const;
    std::uint32_t save(const Link& link);
    std::vector<std::int64_t> trace(std::uint32_t link) const;
    SearchResult best_of(const Front& complete) const;
    void tick(std::size_t steps);

    const SearchSpace& space_;
    Beam beam_;
    std::vector<std::size_t> first_link_;  // of each variable's options
    std::vector<Link> links_;
    std::vector<std::vector<Front>> fronts_;  // per bucket and separator assignment
    double left_out_ = impossible;
    std::size_t states_ = 0;
    std::size_t steps_ = 0;
    std::size_t next_clock_ = steps_per_clock;
};

void Search::tick(std::size_t steps) {
    steps_ += steps;
    if (steps_ >= next_clock_) {
        next_clock_ = steps_ + steps_per_clock;
        if (steps_ > space_.max_steps || std::chrono::steady_clock::now() > space_.deadline) {
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
    const auto rest = [&](const Messages& messages) {
        double gain = messages.outside[bucket][assignment / here.options];
        for (std::size_t j = joined; j < here.children.size(); ++j) {
            gain += messages.inside[here.children[j]][here.child_index[j][assignment]];
        }
        return gain;
    };
    return {rest(space_.relaxed), -rest(space_.cheapest)};
}

double Search::bound(const State& state, const Remainder& remainder) const {
    return state.value + remainder.gain + space_.price * (space_.budget - state.cost);
}

bool Search::hopeful(const State& state, const Remainder& remainder) const {
    return state.cost + remainder.cost <= space_.budget && bound(state, remainder) > space_.accepted;
}

// Drop dominated states, then shorten the front to the beam; ascending cost and value.
void Search::cut(Front& front, const Remainder& remainder) {
    std::ranges::sort(
        front, [](const State& a, const State& b) { return a.cost != b.cost ? a.cost < b.cost : a.value > b.value; });
    double best = impossible;
    std::erase_if(front,
                  [&](const State& state) { return state.value <= std::exchange(best, std::max(best, state.value)); });
    if (front.size() > beam_.size && beam_.cut == Cut::best) {
        keep_best(front, remainder);
    } else if (front.size() > beam_.size) {
        merge(front);
    }
}

void Search::keep_best(Front& front, const Remainder& remainder) {
    std::vector<std::pair<double, std::size_t>> ranking;
    for (std::size_t i = 0; i < front.size(); ++i) {
        ranking.emplace_back(-bound(front[i], remainder), i);
    }
    const auto cut = ranking.begin() + static_cast<std::ptrdiff_t>(beam_.size);
    std::ranges::nth_element(ranking, cut);
    left_out_ = std::max(left_out_, -cut->first);
    std::vector<std::size_t> kept;
    std::transform(ranking.begin(), cut, std::back_inserter(kept), [](const auto& entry) { return entry.second; });
    std::ranges::sort(kept);
    for (std::size_t i = 0; i < kept.size(); ++i) {
        front[i] = front[kept[i]];
    }
    front.resize(beam_.size);
}

// The first state of a group is what its cost and links stand for.
void Search::merge(Front& front) const {
    const double width = (front.back().value - front.front().value) / static_cast<double>(beam_.size);
    double first = 0.0;
    std::size_t groups = 0;
    for (std::size_t i = 0; i < front.size(); ++i) {
        if (i > 0 && front[i].value - first <= width) {
            front[groups - 1].value = front[i].value;
        } else {
            first = front[i].value;
            front[groups++] = front[i];
        }
    }
    front.resize(groups);
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
        cut(result, remainder);
    }
    return result;
}

bool Search::twin_follows(std::size_t bucket, std::size_t j) const {
    const Tree& tree = space_.tree;
    const std::vector<std::size_t>& children = tree.buckets[bucket].children;
    return j + 1 < children.size() && tree.buckets[children[j]].separator == tree.buckets[children[j + 1]].separator;
}

// Join children of equal separators to the last of them: once for each assignment of what they see, which is
// less than what their parent sees.
void Search::join_twins(std::size_t bucket) {
    const std::vector<std::size_t>& children = space_.tree.buckets[bucket].children;
    std::vector<std::size_t> joined;
    for (std::size_t j = 0; j < children.size(); ++j) {
        const std::size_t child = children[j];
        for (std::size_t s = 0; !joined.empty() && s < fronts_[child].size(); ++s) {
            const auto rest = [&](const Messages& messages) {
                double gain = messages.outside[child][s];
                for (const std::size_t twin : joined) {
                    gain -= messages.inside[twin][s];
                }
                return gain;
            };
            Front front;
            if (!fronts_[child][s].empty() && !fronts_[joined.back()][s].empty()) {
                const Remainder remainder{rest(space_.relaxed), -rest(space_.cheapest)};
                front = join(fronts_[joined.back()][s], fronts_[child][s], remainder);
            }
            store(child, s, std::move(front));
        }
        joined.push_back(child);
        if (!twin_follows(bucket, j)) {
            joined.clear();
        }
    }
}

void Search::store(std::size_t bucket, std::size_t s, Front front) {
    for (State& state : front) {
        state.link = {save(state.link), no_link};
    }
    front.shrink_to_fit();
    states_ += front.size();
    states_ -= fronts_[bucket][s].size();
    fronts_[bucket][s] = std::move(front);
    if (states_ > max_states) {
        throw Stopped{};
    }
}

// All states of bucket `bucket` at one assignment of its variable and separator.
Front Search::extend(std::size_t bucket, std::size_t assignment) {
    const Bucket& here = space_.tree.buckets[bucket];
    const bool root = bucket == space_.tree.root();
    const std::size_t link = root ? 0 : first_link_[here.variable] + here.option(assignment);
    Front front{{here.cost[assignment], here.value_at(assignment), {static_cast<std::uint32_t>(link), no_link}}};
    if (!hopeful(front.front(), remainder(bucket, assignment, 0))) {
        return {};
    }
    for (std::size_t j = 0; j < here.children.size() && !front.empty(); ++j) {
        if (twin_follows(bucket, j)) {
            continue;  // the last of them stands for all
        }
        const Front& theirs = fronts_[here.children[j]][here.child_index[j][assignment]];
        front = join(front, theirs, remainder(bucket, assignment, j + 1));
    }
    return front;
}

std::vector<std::int64_t> Search::trace(std::uint32_t link) const {
    std::vector<std::int64_t> choice(space_.problem.values.size(), 0);
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
    for (const std::size_t size : space_.problem.sizes()) {
        first_link_.push_back(first_link_.back() + size);
    }
    links_.resize(first_link_.back());
    fronts_.resize(tree.buckets.size());
    for (std::size_t i = 0; i < tree.buckets.size(); ++i) {
        const Bucket& bucket = tree.buckets[i];
        join_twins(i);
        fronts_[i].resize(bucket.separator_size);
        for (std::size_t s = 0; s < bucket.separator_size; ++s) {
            Front front;
            for (std::size_t x = 0; x < bucket.options; ++x) {
                const Front more = extend(i, s * bucket.options + x);
                front.insert(front.end(), more.begin(), more.end());
            }
            tick(front.size() + 1);
            cut(front, remainder(i, s * bucket.options, bucket.children.size()));
            store(i, s, std::move(front));
        }
        for (const std::size_t child : bucket.children) {
            for (const Front& front : fronts_[child]) {
                states_ -= front.size();
            }
            fronts_[child] = {};
        }
    }
    return best_of(fronts_.back().front());
}

// Merged states promise more than what they stand for.
SearchResult Search::best_of(const Front& complete) const {
    SearchResult result;
    result.bound = left_out_;
    result.steps = steps_;
    for (const State& state : complete) {
        std::vector<std::int64_t> choice = trace(state.link.left);
        const double value = space_.problem.value_of(choice);
        result.bound = std::max(result.bound, state.value);
        if (value > std::max(result.value, space_.accepted)) {
            result.value = value;
            result.choice = std::move(choice);
        }
    }
    return result;
}

}  // namespace

std::optional<SearchResult> search_fronts(const SearchSpace& space, Beam beam) {
    try {
        return Search(space, beam).run();
    } catch (const Stopped&) {
        return std::nullopt;
    }
}

}  // namespace deploy
