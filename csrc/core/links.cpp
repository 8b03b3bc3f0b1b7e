#include "core/links.hpp"

#include <algorithm>

namespace deploy {
namespace {

constexpr int index_bits = 27;  // of a pair's number; the other bits tell the worker
static_assert(Links::max_workers == std::size_t{1} << (32 - index_bits));

}  // namespace

Links::Links(std::span<const std::size_t> sizes, std::size_t workers) : first_{1}, stored_(workers) {
    for (const std::size_t size : sizes) {
        first_.push_back(first_.back() + size);
    }
    stored_.front().links.resize(first_.back());
}

std::uint32_t Links::save(std::size_t worker, const Link& link) {
    std::vector<Link>& links = stored_[worker].links;
    links.push_back(link);
    return static_cast<std::uint32_t>((worker << index_bits) + links.size() - 1);
}

std::vector<std::int64_t> Links::choice(std::uint32_t link) const {
    std::vector<std::int64_t> choice(first_.size() - 1, 0);
    std::vector<std::uint32_t> open{link};
    while (!open.empty()) {
        const std::uint32_t id = open.back();
        open.pop_back();
        if (id >= first_.back()) {
            const Link& pair = stored_[id >> index_bits].links[id & ((std::uint32_t{1} << index_bits) - 1)];
            open.push_back(pair.left);
            open.push_back(pair.right);
        } else if (id > 0) {
            const auto after = std::ranges::upper_bound(first_, id);
            choice[static_cast<std::size_t>(after - first_.begin()) - 1] = static_cast<std::int64_t>(id - *(after - 1));
        }
    }
    return choice;
}

}  // namespace deploy
