#include "core/surgery.hpp"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "core/compress.hpp"
#include "core/sizes.hpp"
#include "core/threads.hpp"

namespace deploy {
namespace {

// Bytes that make a task worth its hand-over to a thread.
constexpr std::size_t task_bytes = std::size_t{256} << 10;
// Two threads that first touch the same huge page both clear it; tasks of its size keep them apart.
constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;
// Tasks per thread, so that threads end together.
constexpr std::size_t tasks_per_thread = 8;
// Blocks of at least this size are copied one by one, so that threads can share the work of one array.
constexpr std::size_t whole_block_bytes = 1024;
// Runs of this mean length are worth calls of memcpy; shorter ones are moved by code made for their size.
constexpr std::size_t long_run_bytes = 256;

struct Run {
    std::size_t source;  // byte offset from the row's beginning
    std::size_t bytes;
};

// A job reduced to rows: row r copies `blocks` or `runs`, relative to the sum of one offset of each list in `outer`.
struct Rows {
    const std::byte* source = nullptr;
    std::byte* target = nullptr;
    std::vector<std::vector<std::size_t>> outer;  // byte offsets per outer dimension
    std::vector<std::uint32_t> blocks;            // byte offsets of blocks of equal size; else `runs`
    std::size_t block_bytes = 0;
    Masks masks;  // the same as `blocks`, where that is faster
    std::vector<Run> runs;
    std::size_t row_bytes = 0;
    std::size_t count = 1;
};

struct Task {
    const Rows* rows;
    std::size_t begin;
    std::size_t end;
};

std::string place(std::size_t number, std::size_t dim) {
    return "job " + std::to_string(number) + ", dim " + std::to_string(dim) + ": ";
}

// Bytes of an array.
std::size_t bytes_of(std::span<const std::size_t> shape, std::size_t item_bytes) {
    return product({product(shape), item_bytes});
}

std::size_t entry_count(const GatherJob& job, std::size_t dim) {
    return job.entries[dim] ? job.entries[dim]->size() : job.shape[dim];
}

std::vector<std::size_t> byte_offsets(const GatherJob& job, std::size_t dim, std::size_t stride) {
    std::vector<std::size_t> offsets(entry_count(job, dim));
    for (std::size_t i = 0; i < offsets.size(); ++i) {
        offsets[i] = stride * (job.entries[dim] ? static_cast<std::size_t>((*job.entries[dim])[i]) : i);
    }
    return offsets;
}

std::vector<Run> merge_runs(std::span<const std::size_t> offsets, std::size_t block) {
    std::vector<Run> runs;
    for (const std::size_t offset : offsets) {
        if (!runs.empty() && runs.back().source + runs.back().bytes == offset) {
            runs.back().bytes += block;
        } else {
            runs.push_back({offset, block});
        }
    }
    return runs;
}

// What each row copies from its last cut dimension, whose entries are `block` bytes apart.
void fill_row(Rows& rows, const GatherJob& job, std::size_t dim, std::size_t block) {
    const std::vector<std::size_t> offsets = byte_offsets(job, dim, block);
    const bool small = job.shape[dim] * block <= UINT32_MAX;
    rows.row_bytes = offsets.size() * block;
    if (dim == 0 && small) {  // the only row: to find its runs takes longer than they save
        rows.block_bytes = block;
        rows.blocks.assign(offsets.begin(), offsets.end());
        return;
    }
    rows.runs = merge_runs(offsets, block);
    if (!small || rows.row_bytes / rows.runs.size() >= long_run_bytes) {
        return;
    }
    // A flattened channel is a run of entries: the largest block that all runs consist of.
    for (const Run& run : rows.runs) {
        rows.block_bytes = std::gcd(rows.block_bytes, run.bytes);
    }
    for (const Run& run : rows.runs) {
        for (std::size_t at = 0; at < run.bytes; at += rows.block_bytes) {
            rows.blocks.push_back(static_cast<std::uint32_t>(run.source + at));
        }
    }
    rows.runs.clear();
    if (rows.block_bytes == 4) {
        rows.masks = compress_masks(rows.blocks);
    }
}

Rows make_rows(const GatherJob& job, std::byte* target) {
    Rows rows;
    rows.source = job.source.data();
    rows.target = target;
    // Trailing whole dimensions are one contiguous block; the last cut dimension gives what a row copies.
    std::size_t inner = job.shape.size();
    std::size_t block = job.item_bytes;
    while (inner > 0 && !job.entries[inner - 1]) {
        block *= job.shape[--inner];
    }
    std::size_t stride = block;
    if (inner > 0 && block < whole_block_bytes) {
        --inner;
        fill_row(rows, job, inner, block);
        stride *= job.shape[inner];
    } else {
        rows.runs = {{0, block}};
        rows.row_bytes = block;
    }
    rows.outer.resize(inner);
    for (std::size_t dim = inner; dim-- > 0;) {
        rows.outer[dim] = byte_offsets(job, dim, stride);
        rows.count *= rows.outer[dim].size();
        stride *= job.shape[dim];
    }
    return rows;
}

// A constant size lets the compiler replace the call of memcpy by a few moves.
template <std::size_t Bytes>
void copy_blocks(const std::byte* source, std::byte* target, std::span<const std::uint32_t> blocks) {
    std::size_t i = 0;
    for (; i + 4 <= blocks.size(); i += 4) {
        for (std::size_t k = 0; k < 4; ++k) {
            std::memcpy(target + k * Bytes, source + blocks[i + k], Bytes);
        }
        target += 4 * Bytes;
    }
    for (; i < blocks.size(); ++i) {
        std::memcpy(target, source + blocks[i], Bytes);
        target += Bytes;
    }
}

// Single items, 1x1 to 7x7 kernels and flattened maps of 2- and 4-byte floats are what networks consist of.
void copy_row(const Rows& rows, const std::byte* source, std::byte* target) {
    if (!rows.masks.empty()) {
        return compress_row(rows.masks, source, target);
    }
    switch (rows.block_bytes) {
        case 1:
            return copy_blocks<1>(source, target, rows.blocks);
        case 2:
            return copy_blocks<2>(source, target, rows.blocks);
        case 4:
            return copy_blocks<4>(source, target, rows.blocks);
        case 8:
            return copy_blocks<8>(source, target, rows.blocks);
        case 16:
            return copy_blocks<16>(source, target, rows.blocks);
        case 18:
            return copy_blocks<18>(source, target, rows.blocks);
        case 32:
            return copy_blocks<32>(source, target, rows.blocks);
        case 36:
            return copy_blocks<36>(source, target, rows.blocks);
        case 64:
            return copy_blocks<64>(source, target, rows.blocks);
        case 100:
            return copy_blocks<100>(source, target, rows.blocks);
        case 196:
            return copy_blocks<196>(source, target, rows.blocks);
        default:
            break;
    }
    for (const std::uint32_t block : rows.blocks) {
        std::memcpy(target, source + block, rows.block_bytes);
        target += rows.block_bytes;
    }
    for (const Run& run : rows.runs) {
        std::memcpy(target, source + run.source, run.bytes);
        target += run.bytes;
    }
}

void copy_rows(const Task& task) {
    const Rows& rows = *task.rows;
    std::vector<std::size_t> position(rows.outer.size());
    std::size_t rest = task.begin;
    for (std::size_t dim = rows.outer.size(); dim-- > 0;) {
        position[dim] = rest % rows.outer[dim].size();
        rest /= rows.outer[dim].size();
    }
    std::byte* target = rows.target + task.begin * rows.row_bytes;
    for (std::size_t row = task.begin; row < task.end; ++row) {
        const std::byte* source = rows.source;
        for (std::size_t dim = 0; dim < position.size(); ++dim) {
            source += rows.outer[dim][position[dim]];
        }
        copy_row(rows, source, target);
        target += rows.row_bytes;
        for (std::size_t dim = position.size(); dim-- > 0 && ++position[dim] == rows.outer[dim].size();) {
            position[dim] = 0;
        }
    }
}

// New memory is cleared page by page when it is first written, which takes as long as the copying; larger pages
// take less. Only advice: a system that refuses it does without.
void advise_huge_pages([[maybe_unused]] std::span<std::byte> target) {
#ifdef MADV_HUGEPAGE
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto first = reinterpret_cast<std::uintptr_t>(target.data());
    const std::uintptr_t begin = first / page * page;
    madvise(reinterpret_cast<void*>(begin), first + target.size() - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

std::vector<std::size_t> gathered_shape(const GatherJob& job, std::size_t number) {
    const auto name = [&] { return "job " + std::to_string(number) + ": "; };
    if (job.shape.size() > max_gather_rank) {
        throw std::invalid_argument(name() + "at most 8 dimensions, not " + std::to_string(job.shape.size()));
    }
    if (job.item_bytes != 1 && job.item_bytes != 2 && job.item_bytes != 4 && job.item_bytes != 8 &&
        job.item_bytes != 16) {
        throw std::invalid_argument(name() + "items must have 1, 2, 4, 8 or 16 bytes, not " +
                                    std::to_string(job.item_bytes));
    }
    if (job.entries.size() != job.shape.size()) {
        throw std::invalid_argument(name() + "expected one index (or None) for each of " +
                                    std::to_string(job.shape.size()) + " dimensions, got " +
                                    std::to_string(job.entries.size()));
    }
    if (job.source.size() != bytes_of(job.shape, job.item_bytes)) {
        throw std::invalid_argument(name() + "the array's length contradicts its shape");
    }
    std::vector<std::size_t> result;
    for (std::size_t dim = 0; dim < job.shape.size(); ++dim) {
        result.push_back(entry_count(job, dim));
        if (!job.entries[dim]) {
            continue;
        }
        if (job.entries[dim]->empty()) {
            throw std::invalid_argument(place(number, dim) + "the index is empty; keep at least one entry");
        }
        for (const std::int64_t entry : *job.entries[dim]) {
            if (entry < 0 || static_cast<std::uint64_t>(entry) >= job.shape[dim]) {
                throw std::invalid_argument(place(number, dim) + "index " + std::to_string(entry) + " is outside 0.." +
                                            std::to_string(job.shape[dim]) + " (exclusive)");
            }
        }
    }
    bytes_of(result, job.item_bytes);  // can be counted
    return result;
}

void gather_many(std::span<const GatherJob> jobs, std::span<const std::span<std::byte>> targets, int threads) {
    threads = thread_count(threads);
    if (jobs.size() != targets.size()) {
        throw std::invalid_argument("expected one target for each of " + std::to_string(jobs.size()) + " jobs, got " +
                                    std::to_string(targets.size()));
    }
    for (std::size_t i = 0; i < jobs.size(); ++i) {
        if (bytes_of(gathered_shape(jobs[i], i), jobs[i].item_bytes) != targets[i].size()) {
            throw std::invalid_argument("job " + std::to_string(i) + ": the target's length contradicts the cut shape");
        }
    }
    std::size_t total_bytes = 0;
    for (const std::span<std::byte> target : targets) {
        total_bytes += target.size();
    }
    const std::size_t least_bytes =
        std::clamp(total_bytes / (static_cast<std::size_t>(threads) * tasks_per_thread), task_bytes, huge_page_bytes);
    std::vector<Rows> all(jobs.size());
    std::vector<Task> tasks;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
        if (targets[i].empty()) {
            continue;
        }
        if (targets[i].size() >= huge_page_bytes / 2) {  // smaller ones hardly ever fill one, even beside others
            advise_huge_pages(targets[i]);
        }
        all[i] = make_rows(jobs[i], targets[i].data());
        const std::size_t step = std::max<std::size_t>(1, least_bytes / all[i].row_bytes);
        for (std::size_t row = 0; row < all[i].count; row += step) {
            tasks.push_back({&all[i], row, std::min(row + step, all[i].count)});
        }
    }
    const std::size_t useful = std::min<std::size_t>(static_cast<std::size_t>(threads), 1 + total_bytes / task_bytes);
    parallel_for(tasks.size(), static_cast<int>(useful), [&](std::size_t i) { copy_rows(tasks[i]); });
}

}  // namespace deploy
