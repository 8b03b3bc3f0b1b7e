#include "core/fronts.hpp"

#include <algorithm>
#include <atomic>
#include <functional>
#include <utility>

#include "core/links.hpp"
#include "core/screen.hpp"
#include "core/states.hpp"
#include "core/threads.hpp"

namespace deploy {
namespace {

constexpr std::size_t max_links = std::size_t{1} << 26;   // 8 bytes each
constexpr std::size_t max_states = std::size_t{1} << 24;  // 24 bytes each, of all fronts still needed
constexpr std::size_t steps_per_clock = 4096;
constexpr std::size_t worth_threads = 4096;  // states that a bucket's children hold

struct Stopped {};  // thrown where time or memory runs out; never leaves this file

// What a state must offer, by what can still be gained outside of what it has decided.
struct Remainder {
    std::vector<double> least;  // its value - price * cost is above this, for each of the relaxed prices
    Cost room;                  // its cost is at most this
};

// One thread's share of a search.
struct Worker {
    std::size_t number = 0;
    Screen screen;
    double left_out = impossible;
    std::size_t uncounted_steps = 0;
    std::size_t uncounted_links = 0;
};

class Search {
  public:
    Search(const SearchSpace& space, Beam beam);

    SearchResult run();

  private:
    void each(std::size_t count, std::size_t states, const std::function<void(Worker&, std::size_t)>& body);
    bool twin_follows(std::size_t bucket, std::size_t j) const;
    void join_twins(std::size_t bucket);
    void finish(std::size_t bucket, std::size_t s, Worker& worker);
    void store(Worker& worker, Front& place, Front front);
    Front extend(Worker& worker, std::size_t bucket, std::size_t assignment);
    Front join(Worker& worker, const Front& mine, const Front& theirs, const Remainder& remainder);
    void cut(Worker& worker, Front& front, const Remainder& remainder) const;
    void shorten(Worker& worker, Front& front, const Remainder& remainder) const;
    template <typename Rest>
    Remainder needed(const Rest& rest) const;
    Remainder remainder(std::size_t bucket, std::size_t assignment, std::size_t joined) const;
    double above(Cost cost, double value, const Remainder& remainder) const;
    std::uint32_t save(Worker& worker, const Link& link);
    SearchResult best_of(const Front& complete) const;
    void tick(Worker& worker, std::size_t steps);
    void count(Worker& worker);

    const SearchSpace& space_;
    Beam beam_;
    std::vector<Worker> workers_;
    Links links_;
    std::vector<std::vector<Front>> fronts_;  // per bucket and separator assignment
    std::size_t states_ = 0;                  // of the finished buckets' fronts
    std::atomic<std::size_t> stored_ = 0;     // since then
    std::atomic<std::size_t> steps_ = 0;
    std::atomic<std::size_t> saved_ = 0;
};

Search::Search(const SearchSpace& space, Beam beam)
    : space_(space),
      beam_(beam),
      workers_(std::clamp(static_cast<std::size_t>(std::max(space.threads, 1)), std::size_t{1}, Links::max_workers)),
      links_(space.problem.sizes(), workers_.size()) {
    for (std::size_t w = 0; w < workers_.size(); ++w) {
        workers_[w].number = w;
    }
}

void Search::tick(Worker& worker, std::size_t steps) {
    worker.uncounted_steps += steps;
    if (worker.uncounted_steps >= steps_per_clock) {
        count(worker);
    }
}

// All counts rise until all workers are done, so whether a limit is passed does not depend on the workers' order.
void Search::count(Worker& worker) {
    const std::size_t steps = steps_ += std::exchange(worker.uncounted_steps, 0);
    const std::size_t links = saved_ += std::exchange(worker.uncounted_links, 0);
    if (steps > space_.max_steps || links > max_links || states_ + stored_ > max_states ||
        std::chrono::steady_clock::now() > space_.deadline) {
        throw Stopped{};
    }
}

// Call body(worker, i) for each i below `count`, on several threads where the `states` at hand are worth it.
void Search::each(std::size_t count, std::size_t states, const std::function<void(Worker&, std::size_t)>& body) {
    const std::size_t wanted = states < worth_threads ? 1 : std::min(workers_.size(), count);
    std::atomic<std::size_t> next{0};
    parallel_for(wanted, static_cast<int>(wanted), [&](std::size_t w) {
        for (std::size_t i = next++; i < count; i = next++) {
            body(workers_[w], i);
        }
    });
    for (Worker& worker : workers_) {
        this->count(worker);
    }
}

std::uint32_t Search::save(Worker& worker, const Link& link) {
    if (link.right == no_link) {
        return link.left;
    }
    ++worker.uncounted_links;
    return links_.save(worker.number, link);
}

// `rest` adds up messages of what is not decided yet.
template <typename Rest>
Remainder Search::needed(const Rest& rest) const {
    Remainder result{{}, space_.budget + rest(space_.cheapest)};
    for (const Relaxed& relaxed : space_.relaxed) {
        result.least.push_back(space_.cutoff - rest(relaxed.messages) - relaxed.price * space_.budget);
    }
    return result;
}

// For a state that has decided bucket `bucket` at `assignment` and joined its first `joined` children.
Remainder Search::remainder(std::size_t bucket, std::size_t assignment, std::size_t joined) const {
    const Bucket& here = space_.tree.buckets[bucket];
    return needed([&](const Messages& messages) {
        double gain = messages.outside[bucket][assignment / here.options];
        for (std::size_t j = joined; j < here.children.size(); ++j) {
            gain += messages.inside[here.children[j]][here.child_index[j][assignment]];
        }
        return gain;
    });
}

// By how much what a state may lead to exceeds the cutoff; impossible where the cost is too large.
double Search::above(Cost cost, double value, const Remainder& remainder) const {
    double result = cost <= remainder.room ? std::numeric_limits<double>::infinity() : impossible;
    for (std::size_t k = 0; k < remainder.least.size(); ++k) {
        result = std::min(result, value - space_.relaxed[k].price * cost - remainder.least[k]);
    }
    return result;
}

// Drop dominated states, then shorten the front to the beam; ascending cost and value.
void Search::cut(Worker& worker, Front& front, const Remainder& remainder) const {
    if (beam_.cut == Cut::merge) {
        merge(front, beam_.size);
    } else {
        drop_dominated(front);
        if (front.size() > beam_.size) {
            shorten(worker, front, remainder);
        }
    }
}

void Search::shorten(Worker& worker, Front& front, const Remainder& remainder) const {
    std::vector<double> excess;
    for (const State& state : front) {
        excess.push_back(above(state.cost, state.value, remainder));
    }
    worker.left_out = std::max(worker.left_out, space_.cutoff + keep_best(front, excess, beam_.size));
}

// The sums that may exceed the cutoff, of a state of `mine` and one of `theirs`, both ascending in cost.
Front Search::join(Worker& worker, const Front& mine, const Front& theirs, const Remainder& remainder) {
    const std::size_t prices = space_.relaxed.size();
    worker.screen.prepare(theirs, space_.relaxed);
    Front result;
    std::vector<double> least(prices);
    std::size_t end = theirs.size();
    for (const State& a : mine) {
        while (end > 0 && a.cost + theirs[end - 1].cost > remainder.room) {
            --end;
        }
        for (std::size_t k = 0; k < prices; ++k) {
            least[k] = remainder.least[k] - (a.value - space_.relaxed[k].price * a.cost);
        }
        std::uint32_t left = no_link;
        std::size_t steps = worker.screen.blocks();
        for (std::size_t start = 0; start < end; start += Screen::block) {
            if (!worker.screen.block_passes(start, least)) {
                continue;
            }
            const std::size_t stop = std::min(end, start + Screen::block);
            steps += stop - start;
            for (std::size_t b = start; b < stop; ++b) {
                if (worker.screen.passes(b, least)) {
                    left = left == no_link ? save(worker, a.link) : left;
                    result.push_back({a.cost + theirs[b].cost, a.value + theirs[b].value, {left, theirs[b].link.left}});
                }
            }
        }
        tick(worker, steps);
        if (result.size() > max_states) {
            throw Stopped{};
        }
    }
    if (mine.size() > 1) {
        cut(worker, result, remainder);
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
        if (!joined.empty()) {
            each(fronts_[child].size(), states_, [&](Worker& worker, std::size_t s) {
                Front front;
                if (!fronts_[child][s].empty() && !fronts_[joined.back()][s].empty()) {
                    const Remainder remainder = needed([&](const Messages& messages) {
                        double gain = messages.outside[child][s];
                        for (const std::size_t twin : joined) {
                            gain -= messages.inside[twin][s];
                        }
                        return gain;
                    });
                    front = join(worker, fronts_[joined.back()][s], fronts_[child][s], remainder);
                }
                store(worker, fronts_[child][s], std::move(front));
            });
        }
        joined.push_back(child);
        if (!twin_follows(bucket, j)) {
            joined.clear();
        }
    }
}

void Search::store(Worker& worker, Front& place, Front front) {
    for (State& state : front) {
        state.link = {save(worker, state.link), no_link};
    }
    front.shrink_to_fit();
    stored_ += front.size();
    place = std::move(front);
}

// All states of bucket `bucket` at one assignment of its variable and separator.
Front Search::extend(Worker& worker, std::size_t bucket, std::size_t assignment) {
    const Bucket& here = space_.tree.buckets[bucket];
    const bool root = bucket == space_.tree.root();
    const std::uint32_t link = root ? 0 : links_.option(here.variable, here.option(assignment));
    Front front{{here.cost[assignment], here.value_at(assignment), {link, no_link}}};
    if (!(above(front.front().cost, front.front().value, remainder(bucket, assignment, 0)) > 0.0)) {
        return {};
    }
    for (std::size_t j = 0; j < here.children.size() && !front.empty(); ++j) {
        if (twin_follows(bucket, j)) {
            continue;  // the last of them stands for all
        }
        const Front& theirs = fronts_[here.children[j]][here.child_index[j][assignment]];
        front = join(worker, front, theirs, remainder(bucket, assignment, j + 1));
    }
    return front;
}

void Search::finish(std::size_t bucket, std::size_t s, Worker& worker) {
    const Bucket& here = space_.tree.buckets[bucket];
    Front front;
    for (std::size_t x = 0; x < here.options; ++x) {
        const Front more = extend(worker, bucket, s * here.options + x);
        front.insert(front.end(), more.begin(), more.end());
    }
    tick(worker, front.size() + 1);
    cut(worker, front, remainder(bucket, s * here.options, here.children.size()));
    store(worker, fronts_[bucket][s], std::move(front));
}

SearchResult Search::run() {
    const Tree& tree = space_.tree;
    fronts_.resize(tree.buckets.size());
    for (std::size_t i = 0; i < tree.buckets.size(); ++i) {
        join_twins(i);
        fronts_[i].resize(tree.buckets[i].separator_size);
        each(fronts_[i].size(), states_, [&](Worker& worker, std::size_t s) { finish(i, s, worker); });
        for (const std::size_t child : tree.buckets[i].children) {
            fronts_[child] = {};
        }
        stored_ = 0;
        states_ = 0;
        for (const std::vector<Front>& fronts : fronts_) {
            for (const Front& front : fronts) {
                states_ += front.size();
            }
        }
    }
    return best_of(fronts_.back().front());
}

// Merged states promise more than what they stand for.
SearchResult Search::best_of(const Front& complete) const {
    SearchResult result;
    for (const Worker& worker : workers_) {
        result.bound = std::max(result.bound, worker.left_out);
    }
    result.steps = steps_;
    for (const State& state : complete) {
        std::vector<std::int64_t> choice = links_.choice(state.link.left);
        const double value = space_.problem.value_of(choice);
        result.bound = std::max(result.bound, state.value);
        if (value > std::max(result.value, space_.cutoff)) {
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
