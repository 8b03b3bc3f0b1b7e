#pragma once

#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

namespace deploy {

// Number of threads to use: `requested`, or for 0 the processors this process may run on; no more than 1024.
// Throws std::invalid_argument for a negative number.
int thread_count(int requested);

// Call body(i) once for each i in 0..count-1 on up to `threads` threads. Tasks are handed out one by one, so
// uneven ones balance. The first exception of any task is rethrown here after all threads have ended.
void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t)>& body);

#ifdef __cpp_lib_jthread
using JoiningThread = std::jthread;
#else
class JoiningThread : public std::thread {
  public:
    using std::thread::thread;
    JoiningThread(JoiningThread&&) = default;
    JoiningThread& operator=(JoiningThread&&) = delete;
    ~JoiningThread() {
        if (joinable()) {
            join();
        }
    }
};
#endif

// Start up to `count` threads that each call `work`, which must not throw. Where the process may start no more or has
// no memory for them, those that run share the work; throws what stopped it where there is none.
// The threads are waited for when the result goes out of scope.
std::vector<JoiningThread> start_threads(std::size_t count, const std::function<void()>& work);

}  // namespace deploy
