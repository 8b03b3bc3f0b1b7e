#include "core/stats.hpp"

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace deploy {

double reference_kernel_us(long repeats) {
    if (repeats < 1) {
        throw std::invalid_argument("repeats must be at least 1, not " + std::to_string(repeats));
    }
    volatile std::uint64_t sink = 0x9e3779b97f4a7c15U;  // what ends here cannot be optimized away
    const auto start = std::chrono::steady_clock::now();
    std::uint64_t bits = sink;
    double number = 0.5;
    for (long repeat = 0; repeat < repeats; ++repeat) {
        for (int step = 0; step < 1000; ++step) {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            number = number * 0.75 + static_cast<double>(bits & 0xffU) * 0x1p-10;
        }
    }
    sink = bits + static_cast<std::uint64_t>(number * 1e6);
    const auto stop = std::chrono::steady_clock::now();
    return std::chrono::duration<double, std::micro>(stop - start).count();
}

}  // namespace deploy
