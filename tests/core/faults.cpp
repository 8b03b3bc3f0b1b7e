// Every allocation and every start of a thread fails once, and then all from that one on: the core must give the right
// result or throw, never end the process, wait for ever or leave something half done. Built by test_core_faults.py.
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "core/batch.hpp"
#include "core/entries.hpp"
#include "core/fold.hpp"
#include "core/histogram.hpp"
#include "core/mask.hpp"
#include "core/surgery.hpp"
#include "core/threads.hpp"

namespace {

// The call after `left` more fails, and where it is `for_ever` all after it.
struct Fault {
    std::atomic<bool> active{false};
    std::atomic<bool> for_ever{false};
    std::atomic<bool> struck{false};
    std::atomic<long> left{0};

    bool strikes() {
        if (!active) {
            return false;
        }
        const long before = left.fetch_sub(1);
        const bool strikes = for_ever ? before <= 0 : before == 0;
        struck = struck || strikes;
        return strikes;
    }
};

Fault allocation;
Fault start;

void* allocated(std::size_t bytes, std::size_t alignment) {
    void* const memory =
        allocation.strikes() ? nullptr : std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
    if (!memory) {
        throw std::bad_alloc();
    }
    return memory;
}

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t bytes) {
    return allocated(bytes, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
    return allocated(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
    std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
    std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
    std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
    std::free(memory);
}

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*routine)(void*),
                              void* argument) {
    using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
    static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
    return start.strikes() ? EAGAIN : create(thread, attributes, routine, argument);
}

namespace {

void require(bool holds, const char* what) {
    if (!holds) {
        std::fprintf(stderr, "not so: %s\n", what);
        std::_Exit(1);
    }
}

// Whether nothing was thrown; what is thrown must be what a lack of memory or threads throws.
template <typename Action>
bool succeeds(const Action& action) {
    try {
        action();
        return true;
    } catch (const std::bad_alloc&) {
    } catch (const std::system_error&) {
    }
    return false;
}

void scatter() {
    std::vector<std::atomic<int>> calls(64);
    const bool done = succeeds([&] {
        deploy::parallel_for(calls.size(), 4, [&](std::size_t i) {
            const std::vector<std::size_t> work(i + 1, i);
            calls[i] += work.back() == i ? 1 : 100;
        });
    });
    for (const std::atomic<int>& count : calls) {
        require(done ? count == 1 : count <= 1, "every task ran once");
    }
}

void threads_share_what_there_is() {
    std::atomic<std::size_t> ran{0};
    std::size_t started = 0;
    succeeds([&] { started = deploy::start_threads(5, [&] { ++ran; }).size(); });
    require(ran == started, "every thread that was started ran");
}

std::vector<deploy::Image> images(std::span<const std::uint8_t> pixels, std::size_t count) {
    return std::vector<deploy::Image>(count, {pixels, 4, 6, 3, false});
}

void batches() {
    const std::vector<std::uint8_t> pixels(4 * 6 * 3, 7);
    std::unique_ptr<deploy::Batcher> batcher;
    const auto keep = std::make_shared<int>(0);
    succeeds([&] {
        const deploy::Preprocess settings{8, 0, 5, 5, deploy::Interpolation::bicubic, {1, 2, 3}, {2, 2, 2}};
        batcher = std::make_unique<deploy::Batcher>(settings, 3, 2, 3);
    });
    for (int round = 0; batcher && round < 4; ++round) {
        const bool submitted = succeeds([&] { batcher->submit(images(pixels, 3), keep); });
        deploy::Batcher::Batch batch;
        if (submitted && succeeds([&] { batch = batcher->take(); })) {
            require(batch.count == 3, "the batch holds what was submitted");
            for (std::size_t i = 0; i < 3 * 3 * 25; ++i) {
                require(batch.samples.get()[i] == (7.0F - static_cast<float>(1 + i / 25 % 3)) / 2, "samples are right");
            }
        }
    }
    batcher.reset();
    require(keep.use_count() == 1, "nothing is held that was let go of");
}

void cuts() {
    const std::vector<std::byte> source(std::size_t{2} << 20, std::byte{3});
    std::vector<std::byte> target(source.size() / 2);
    succeeds([&] {
        deploy::GatherJob job{source, 2, {source.size() / 128, 64}, {std::nullopt, std::vector<std::int64_t>(32)}};
        std::iota(job.entries[1]->begin(), job.entries[1]->end(), 5);
        const std::span<std::byte> result(target);
        deploy::gather_many({&job, 1}, {&result, 1}, 4);
        require(std::ranges::all_of(target, [](std::byte value) { return value == std::byte{3}; }), "the cut is right");
    });
}

void counts() {
    const std::vector<float> values(std::size_t{1} << 20, 1.5F);
    std::unique_ptr<deploy::Histogram> histogram;
    succeeds([&] { histogram = std::make_unique<deploy::Histogram>(16); });
    for (int round = 0; histogram && round < 2; ++round) {
        succeeds([&] { histogram->update(values, 2); });
        allocation.active = false;
        const deploy::Histogram copy =
            deploy::Histogram::from_state(histogram->state());  // throws where it contradicts itself
        require(copy.count() == histogram->count(), "the count is that of the bins");
    }
}

void masks_and_entries() {
    succeeds([&] {
        const std::vector<float> values(4096, 1.0F);
        std::vector<std::uint8_t> mask(values.size());
        deploy::keep_largest<float>(values, 64, 1, 2, 4, mask, 3);
        require(std::accumulate(mask.begin(), mask.end(), 0) == 2048, "half of the values stay");
        const std::vector<double> means(64, 1.0);
        const auto shift = deploy::input_shift<float>(values, means, 64, 1, 3);
        require(std::ranges::all_of(shift, [](double sum) { return sum == 64.0; }), "the shift is right");
        const std::vector<std::int64_t> widths{4}, kept{1, 2}, sizes{4};
        const std::vector<std::span<const std::int64_t>> spans{kept};
        const std::vector<deploy::AxisSlice> slices{{0, 0, 0, 1, 1}};
        require(deploy::kept_entries(widths, spans, sizes, slices).front() == kept, "the entries are right");
    });
}

// Let the first call fail, then the second, ... until the scenario has no more; returns how many those were.
long tried(const std::function<void()>& scenario, Fault& fault, bool for_ever) {
    for (long number = 0;; ++number) {
        require(number < 100000, "a scenario has an end");
        fault.for_ever = for_ever;
        fault.left = number;
        fault.struck = false;
        fault.active = true;
        succeeds(scenario);  // its own vectors have no better luck
        fault.active = false;
        if (!fault.struck) {
            return number;
        }
    }
}

}  // namespace

int main() {
    const std::pair<const char*, std::function<void()>> scenarios[] = {
        {"parallel_for", scatter}, {"start_threads", threads_share_what_there_is},
        {"Batcher", batches},      {"gather_many", cuts},
        {"Histogram", counts},     {"masks and entries", masks_and_entries}};
    for (const auto& [name, scenario] : scenarios) {
        for (const bool for_ever : {false, true}) {
            const long allocations = tried(scenario, allocation, for_ever);
            const long starts = tried(scenario, start, for_ever);
            std::printf("%s: %ld allocations, %ld threads%s\n", name, allocations, starts,
                        for_ever ? ", for ever" : "");
        }
    }
    return 0;
}
