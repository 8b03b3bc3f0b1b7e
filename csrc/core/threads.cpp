#include "core/threads.hpp"

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace deploy {

int thread_count(int requested) {
    if (requested < 0) {
        throw std::invalid_argument("threads must be 0 (all processors) or positive, not " + std::to_string(requested));
    }
    if (requested > 0) {
        return requested;
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
    std::vector<std::thread> others;
    const std::size_t wanted = std::min<std::size_t>(static_cast<std::size_t>(std::max(threads, 1)), count);
    others.reserve(wanted);
    for (std::size_t i = 1; i < wanted; ++i) {
        try {
            others.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // the process may not start more threads; those that run share the tasks
        }
    }
    work();
    for (std::thread& other : others) {
        other.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

}  // namespace deploy
