#pragma once

namespace deploy {

// Wall time in microseconds of `repeats` times 1000 steps of dependent integer and floating-point work that touches
// no memory, on this thread. The same machine, undisturbed and at the same clock, gives the same time: a change
// tells of clock drift or foreign load. Throws std::invalid_argument for repeats < 1.
double reference_kernel_us(long repeats);

}  // namespace deploy
