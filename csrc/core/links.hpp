#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/states.hpp"

namespace deploy {

// How states came about. A link's number stands for one option of one variable, for no decision (0), or for two
// earlier links that were joined. Each worker stores its own pairs, so that none waits for another.
class Links {
  public:
    static constexpr std::size_t max_workers = 32;

    // `sizes` are the numbers of the variables' options.
    Links(std::span<const std::size_t> sizes, std::size_t workers);

    std::uint32_t option(std::size_t variable, std::size_t option) const {
        return static_cast<std::uint32_t>(first_[variable] + option);
    }
    // The number of `link`; only one thread at a time may use `worker`.
    std::uint32_t save(std::size_t worker, const Link& link);
    // The option of each variable; 0 where `link` decides nothing.
    std::vector<std::int64_t> choice(std::uint32_t link) const;

  private:
    struct alignas(64) Pairs {  // a cache line of its own
        std::vector<Link> links;
    };

    std::vector<std::size_t> first_;  // of each variable's options, and the first pair
    std::vector<Pairs> stored_;       // of each worker
};

}  // namespace deploy
