// Vectors of floats as wide as the machine's, in the compilers' own vector types: one source for every instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// vdpbf16ps multiplies pairs of bf16 and adds them up in fp32; with it, activations are handed over in bf16.
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define LLMOS_DOT_BF16 1
#else
#define LLMOS_DOT_BF16 0
#endif

#define INLINE inline __attribute__((always_inline))

typedef float V __attribute__((vector_size(LANES * 4)));
typedef int32_t VI __attribute__((vector_size(LANES * 4)));
typedef uint32_t VU __attribute__((vector_size(LANES * 4)));
typedef uint16_t VH __attribute__((vector_size(LANES * 2)));
typedef int8_t VB __attribute__((vector_size(LANES)));

template <class T> INLINE T load_as(const void* from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

// Keeps the compiler from reading x from memory again at each use.
INLINE void in_register(V& x) {
#if defined(__AVX__)
    asm("" : "+v"(x));
#elif defined(__SSE2__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
}

INLINE V load(const float* from) { return load_as<V>(from); }
INLINE void store(float* to, V x) { memcpy(to, &x, sizeof x); }
INLINE V splat(float x) { return V{} + x; }

INLINE float sum(V x) {
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += x[i];
    return total;
}

INLINE float largest(V x) {
    float most = x[0];
    for (int i = 1; i < LANES; ++i) most = x[i] > most ? x[i] : most;
    return most;
}

INLINE float from_bf16(uint16_t half) {
    uint32_t bits = uint32_t(half) << 16;
    return load_as<float>(&bits);
}

// To the nearest bf16, ties to even. What is not a number stays so.
INLINE uint16_t to_bf16(float x) {
    uint32_t bits = load_as<uint32_t>(&x);
    return x == x ? uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;
}

INLINE V load(const uint16_t* from) { return (V)(__builtin_convertvector(load_as<VH>(from), VU) << 16); }

INLINE void store(uint16_t* to, V x) {
    VU bits = (VU)x;
    VU rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    VH halves = __builtin_convertvector(x == x ? rounded : VU{} + 0x7fc0, VH);
    memcpy(to, &halves, sizeof halves);
}

// e^x to about 1e-7: 2^n · e^f with |f| <= ln 2 / 2 and a polynomial in f (Taylor's, degree 7). 0 below -87.3.
INLINE V exp(V x) {
    const V magic = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number in the low bits
    V bounded = x > 88.0f ? splat(88.0f) : x;
    V shifted = bounded * 1.44269504f + magic;
    V n = shifted - magic;
    V f = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    V p = splat(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f}) p = p * f + c;
    V power = (V)(((VU)shifted << 23) + 0x3f800000);
    return x < -87.3f ? V{} : p * power;  // a product, so that what is not a number stays so
}

// LANES bytes, sign extended. Compilers take them apart one by one unless told how.
INLINE VI widen(const uint8_t* from) {
#if defined(__AVX512F__)
    return (VI)_mm512_cvtepi8_epi32(load_as<__m128i>(from));
#elif defined(__AVX2__)
    return (VI)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    return __builtin_convertvector(load_as<VB>(from), VI);
#endif
}

INLINE V to_float(VI x) { return __builtin_convertvector(x, V); }

INLINE V silu(V x) { return x / (1.0f + exp(-x)); }
