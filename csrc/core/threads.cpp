#include "core/threads.hpp"

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

namespace deploy {
namespace {

constexpr int most_threads = 1024;  // more than any processor has, and few enough for any process

}  // namespace

int thread_count(int requested) {
    if (requested < 0) {
        throw std::invalid_argument("threads must be 0 (all processors) or positive, not " + std::to_string(requested));
    }
    if (requested > 0) {
        return std::min(requested, most_threads);
    }
    int available = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#ifdef __linux__
    // hardware_concurrency() ignores taskset and cpusets in some C libraries.
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        available = std::min(available, std::max(1, CPU_COUNT(&set)));
    }
#endif
    return available;
}

std::vector<JoiningThread> start_threads(std::size_t count, const std::function<void()>& work) {
    std::vector<JoiningThread> threads;
    std::exception_ptr failure;
    try {
        threads.reserve(count);
        while (threads.size() < count) {
            threads.emplace_back(work);
        }
    } catch (const std::bad_alloc&) {
        failure = std::current_exception();
    } catch (const std::system_error&) {
        failure = std::current_exception();
    }
    if (failure && threads.empty()) {
        std::rethrow_exception(failure);
    }
    return threads;
}

void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t)>& body) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_mutex;
    const auto work = [&] {
        try {
            for (std::size_t i = next++; i < count; i = next++) {
                body(i);
            }
        } catch (...) {
            next = count;
            const std::lock_guard lock(failure_mutex);
            failure = failure ? failure : std::current_exception();
        }
    };
    const std::size_t wanted = std::min<std::size_t>(static_cast<std::size_t>(std::max(threads, 1)), count);
    {
        std::vector<JoiningThread> others;
        try {
            others = start_threads(wanted > 1 ? wanted - 1 : 0, work);
        } catch (const std::exception&) {
            // This thread does all of it.
        }
        work();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

}  // namespace deploy
