#pragma once

#include <cstddef>
#include <functional>

namespace deploy {

// Number of threads to use: `requested`, or for 0 the processors this process may run on.
// Throws std::invalid_argument for a negative number.
int thread_count(int requested);

// Call body(i) once for each i in 0..count-1 on up to `threads` threads. Tasks are handed out one by one, so
// uneven ones balance. The first exception of any task is rethrown here after all threads have ended.
void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t)>& body);

}  // namespace deploy
