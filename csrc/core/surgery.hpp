#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace deploy {

// Entries to keep along one dimension, in output order; std::nullopt keeps the whole dimension.
using Entries = std::optional<std::vector<std::int64_t>>;

// One array to cut along all its dimensions at once.
struct GatherJob {
    std::span<const std::byte> source;  // C-contiguous, product(shape) * item_bytes
    std::size_t item_bytes = 0;         // 1, 2, 4, 8 or 16
    std::vector<std::size_t> shape;     // 0 to 8 dimensions
    std::vector<Entries> entries;       // one per dimension
};

inline constexpr std::size_t max_gather_rank = 8;

// Shape of the cut array. `number` names the job in messages.
// Throws std::invalid_argument for a wrong rank, item size or source length, an empty list of entries, an entry outside
// its dimension, and a result that no memory holds.
std::vector<std::size_t> gathered_shape(const GatherJob& job, std::size_t number);

// Cut jobs[i] into targets[i], which hold product(gathered_shape) * item_bytes bytes and overlap nothing.
// One pass that reads each kept entry once; linear in the bytes kept. Checks all jobs before it writes anything.
void gather_many(std::span<const GatherJob> jobs, std::span<const std::span<std::byte>> targets, int threads);

}  // namespace deploy
