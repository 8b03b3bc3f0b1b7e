#pragma once

// The tests build files that include this once more with PYDEPLOY_PORTABLE, as other processors run them.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(PYDEPLOY_PORTABLE)
// GCC 12 warns of its own header where it does not optimize fully (bug 105593): what the vectors begin with is unused.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#define PYDEPLOY_X86 1
#endif

namespace deploy {

inline bool has_avx512() {
#ifdef PYDEPLOY_X86
    static const bool found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("popcnt");
    return found;
#else
    return false;
#endif
}

}  // namespace deploy
