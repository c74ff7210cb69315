// AVX512-BF16 for processors without it: included before native.cpp, it makes the same source compile to the same
// arithmetic (vdpbf16ps but for its rounding of each product), so that what uses those instructions can be tested.
// With EMULATE_NO_BF16: AVX512 without it.
#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#define __AVX512F__ 1
#ifndef EMULATE_NO_BF16
#define __AVX512BW__ 1
#define __AVX512BF16__ 1
#endif
#define asm(...)  // only hints, in registers that are not there

typedef int32_t Emulated __attribute__((vector_size(64)));
typedef float EmulatedFloats __attribute__((vector_size(64)));
typedef uint16_t EmulatedHalves __attribute__((vector_size(64)));
typedef int8_t EmulatedBytes __attribute__((vector_size(16)));

static inline __attribute__((always_inline)) __m512 emulated_dpbf16(__m512 sums, __m512bh a, __m512bh b) {
    Emulated x = (Emulated)a, y = (Emulated)b, high = Emulated{} + int32_t(0xffff0000);
    EmulatedFloats low = (EmulatedFloats)(x << 16) * (EmulatedFloats)(y << 16);
    return (__m512)((EmulatedFloats)sums + low + (EmulatedFloats)(x & high) * (EmulatedFloats)(y & high));
}

static inline __attribute__((always_inline)) __m512i emulated_permute(__m512i index, const uint16_t* table) {
    EmulatedHalves at = (EmulatedHalves)index;
    for (int i = 0; i < 32; ++i) at[i] = table[at[i] & 31];
    return (__m512i)at;
}

#define _mm512_dpbf16_ps emulated_dpbf16
#define _mm512_permutexvar_epi16 emulated_permute
#define _mm512_load_si512(table) (table)
#define _mm512_set1_epi32(x) ((__m512i)(Emulated{} + (x)))
#define _mm512_cvtepi8_epi32(x) ((__m512i)__builtin_convertvector((EmulatedBytes)(x), Emulated))
