// Matrices cut into panels of 16 outputs, in the order in which the processor reads them, and their product with rows.
//
// A panel holds, for each pair of inputs (k, k + 1), what they contribute to 16 outputs. A tile is the product of a few
// rows of activations with one panel: its sums stay in registers while the panel streams by once. The pages of the
// key-value cache are panels as well.
#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"

constexpr int PANEL = 16;               // outputs in a panel
constexpr int SPAN = PANEL / LANES;     // vectors that hold them
constexpr int MAX_ROWS = SPAN == 1 ? 12 : SPAN == 2 ? 6 : 3;  // rows of a tile whose sums fit the registers

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

constexpr bool DOT = LLMOS_DOT_BF16;
using Half = std::conditional_t<DOT, uint16_t, float>;  // activations, for every format but F32

// Every format has a `row`: what input k (parity 0) or k + 1 (1) of a pair contributes, as floats. With vdpbf16ps all
// but F32 have a `pair`: both of them, as 16 pairs of bf16.
struct F32 {  // [k / 2][2][16] float
    using Act = float;
    static constexpr int PAIR_BYTES = 128;
    static constexpr bool SCALED = false;

    static INLINE V row(const uint8_t* w, int parity, int i) {
        return load((const float*)w + parity * PANEL + i * LANES);
    }
    static INLINE void put(uint8_t* panel, int k, int column, float x) { ((float*)panel)[k * PANEL + column] = x; }
    static INLINE void copy(uint8_t* panel, int k, int column, const void* from, int64_t i) {
        put(panel, k, column, ((const float*)from)[i]);
    }
};

struct Bf16 {  // [k / 2][16][2] bf16
    using Act = Half;
    static constexpr int PAIR_BYTES = 64;
    static constexpr bool SCALED = false;

    static INLINE V row(const uint8_t* w, int parity, int i) {
        VU both = load_as<VU>(w + i * sizeof(VU));
        return (V)(parity ? both & 0xffff0000 : both << 16);
    }
#if LLMOS_DOT_BF16
    static INLINE __m512i pair(const uint8_t* w) { return load_as<__m512i>(w); }
#endif
    static INLINE uint16_t& at(uint8_t* panel, int k, int column) {
        return ((uint16_t*)panel)[(k / 2 * PANEL + column) * 2 + k % 2];
    }
    static INLINE void put(uint8_t* panel, int k, int column, float x) { at(panel, k, column) = to_bf16(x); }
    static INLINE void copy(uint8_t* panel, int k, int column, const void* from, int64_t i) {
        at(panel, k, column) = ((const uint16_t*)from)[i];
    }
};

struct Int8 {  // 16 scales, then [k / 2][2][16] int8
    using Act = Half;
    static constexpr int PAIR_BYTES = 32;
    static constexpr bool SCALED = true;

    static INLINE V row(const uint8_t* w, int parity, int i) { return to_float(widen(w + parity * PANEL + i * LANES)); }
#if LLMOS_DOT_BF16
    static INLINE __m512i pair(const uint8_t* w) {  // whole numbers up to 128 need no more than a bf16's 8 bits
        return (__m512i)((VU)row(w, 0, 0) >> 16 | (VU)row(w, 1, 0));
    }
#endif
    static INLINE void copy(uint8_t* panel, int k, int column, const void* from, int64_t i) {
        panel[k * PANEL + column] = ((const uint8_t*)from)[i];
    }
};

struct Int4 {  // for each group of inputs: 16 scales, then [k / 2][16] bytes, even k in the low half, two's complement
    using Act = Half;
    static constexpr int PAIR_BYTES = 16;
    static constexpr bool SCALED = true;

    static INLINE V row(const uint8_t* w, int parity, int i) {
        VI both = widen(w + i * LANES);
        return to_float(parity ? both >> 4 : both << 28 >> 28);
    }
#if LLMOS_DOT_BF16
    static INLINE __m512i pair(const uint8_t* w) {
        alignas(64) static const uint16_t table[32] = {  // bf16 of 0 to 7, -8 to -1
            0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
        VI both = widen(w);
        return _mm512_permutexvar_epi16((__m512i)((both & 15) | (both << 12 & 0xf0000)), _mm512_load_si512(table));
    }
#endif
    static INLINE void copy(uint8_t* panel, int k, int column, const void* from, int64_t i) {
        int value = (((const uint8_t*)from)[i / 2] >> i % 2 * 4 & 15) ^ 8;  // was stored + 8
        panel[k / 2 * PANEL + column] |= uint8_t(value << k % 2 * 4);
    }
};

// sums[m] += a[m] · the pair of inputs at w.
template <class Format, int M>
INLINE void multiply_pair(V (&sums)[M][SPAN], const typename Format::Act* a, int64_t stride, const uint8_t* w) {
#if LLMOS_DOT_BF16
    if constexpr (std::is_same_v<typename Format::Act, uint16_t>) {
        __m512bh pair = (__m512bh)Format::pair(w);
        for (int m = 0; m < M; ++m) {
            __m512bh both = (__m512bh)_mm512_set1_epi32(load_as<int>(a + m * stride));
            sums[m][0] = (V)_mm512_dpbf16_ps((__m512)sums[m][0], both, pair);
        }
        return;
    }
#endif
    for (int parity = 0; parity < 2; ++parity) {
        // With many sums, what was read for the even input is read again for the odd one: cheaper than to spill a sum.
        if constexpr (M * SPAN > 8 && !std::is_same_v<Format, F32>) asm("" : "+r"(w));
        V row[SPAN];
        for (int i = 0; i < SPAN; ++i) {
            row[i] = Format::row(w, parity, i);
            in_register(row[i]);
        }
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < SPAN; ++i) sums[m][i] += float(a[m * stride + parity]) * row[i];
    }
}

// A few sums more than rows hide the latency of the additions when rows are few.
constexpr int chains(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// Asks for memory that is needed soon, a little with each pair of inputs: the processor guesses well within a panel,
// but when rows keep it busy with one panel it does not look for the next.
struct Ahead {
    const uint8_t* at;
    int64_t step;  // bytes for each pair

    INLINE void fetch(int64_t pair) const { __builtin_prefetch(at + pair * step, 0, 2); }
};

struct Nothing {
    INLINE void fetch(int64_t) const {}
};

// sums[m] += a[m] · panel, over `pairs` pairs of inputs.
template <class Format, int M, class Next = Nothing>
INLINE void multiply(V (&sums)[M][SPAN], const typename Format::Act* a, int64_t stride, const uint8_t* w, int pairs,
                     Next next = {}) {
    constexpr int CHAINS = chains(M);
    V parts[CHAINS][M][SPAN] = {};
    int k = 0;
    for (; k + CHAINS <= pairs; k += CHAINS)
        for (int c = 0; c < CHAINS; ++c) {
            const uint8_t* at = w + (k + c) * Format::PAIR_BYTES;
            next.fetch(k + c);
            multiply_pair<Format>(CHAINS == 1 ? sums : parts[c], a + 2 * (k + c), stride, at);
        }
    if constexpr (CHAINS == 1) return;
    for (; k < pairs; ++k) multiply_pair<Format>(sums, a + 2 * k, stride, w + k * Format::PAIR_BYTES);
    for (int c = 0; c < CHAINS; ++c)
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < SPAN; ++i) sums[m][i] += parts[c][m][i];
}

// Calls work(integral_constant M, first row, number of the tile, tiles) for tiles of nearly equal height.
template <int LIMIT = MAX_ROWS, class Work> INLINE void each_tile(int rows, Work&& work) {
    int tiles = (rows + LIMIT - 1) / LIMIT;
    for (int t = 0; t < tiles; ++t) {
        int first = int(int64_t(rows) * t / tiles), height = int(int64_t(rows) * (t + 1) / tiles) - first;
        switch (height) {
#define TILE(M) case M: if constexpr (M <= LIMIT) work(std::integral_constant<int, M>{}, first, t, tiles); break;
            TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#undef TILE
        }
    }
}

enum Kind { KIND_F32 = 32, KIND_BF16 = 16, KIND_INT8 = 8, KIND_INT4 = 4 };  // named by their bits

template <class Work> INLINE void with_format(int kind, Work&& work) {
    switch (kind) {
        case KIND_F32: work(F32{}); break;
        case KIND_BF16: work(Bf16{}); break;
        case KIND_INT8: work(Int8{}); break;
        case KIND_INT4: work(Int4{}); break;
    }
}

// A packed matrix. With `halves` 2, panels of its first and second half of outputs take turns (gate and up).
struct Packed {
    int kind = 0, outputs = 0, inputs = 0, halves = 1;
    int panels = 0, groups = 1, group_pairs = 0;
    int64_t panel_bytes = 0;
    uint8_t* data = nullptr;

    // Of the panels that follow the one at w, what to ask for while the `i`-th of `count` tiles is computed.
    Ahead ahead(const uint8_t* w, int i, int count) const {
        constexpr int64_t FAR_BYTES = 1 << 13;
        int64_t pairs = int64_t(groups) * group_pairs, share = panel_bytes / count;
        int64_t distance = count == 1 ? std::min(panel_bytes, FAR_BYTES) : panel_bytes * halves + i * share;
        return {w + distance, (share + pairs - 1) / pairs};
    }

    bool halved_activations() const { return DOT && kind != KIND_F32; }
    int64_t bytes() const { return panel_bytes * panels; }

    // Which output is in `column` of `panel`; -1: none, its weights are 0.
    int output(int panel, int column) const {
        int share = outputs / halves, i = panel / halves * PANEL + column;
        return i < share ? panel % halves * share + i : -1;
    }
};

// out[m] = a[m] · panel for M rows.
template <class Format, int M>
__attribute__((noinline)) void tile(const Packed& matrix, const typename Format::Act* a, int64_t stride,
                                    const uint8_t* w, Ahead next, float* out, int64_t out_stride) {
    V sums[M][SPAN] = {};
    if constexpr (Format::SCALED) {
        for (int g = 0; g < matrix.groups; ++g) {
            V parts[M][SPAN] = {};
            multiply<Format>(parts, a + 2 * g * matrix.group_pairs, stride, w + PANEL * 4, matrix.group_pairs, next);
            for (int m = 0; m < M; ++m)
                for (int i = 0; i < SPAN; ++i) sums[m][i] += parts[m][i] * load((const float*)w + i * LANES);
            w += PANEL * 4 + matrix.group_pairs * Format::PAIR_BYTES, next.at += matrix.group_pairs * next.step;
        }
    } else {
        multiply<Format>(sums, a, stride, w, matrix.group_pairs, next);
    }
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < SPAN; ++i) store(out + m * out_stride + i * LANES, sums[m][i]);
}

// Fills one panel, which is all 0, from `weight` and `scale` as shard.py's Matrix has them.
template <class Format> void pack_panel(const Packed& matrix, int panel, const void* weight, const float* scale) {
    uint8_t* to = matrix.data + panel * matrix.panel_bytes;
    for (int group = 0; group < matrix.groups; ++group) {
        uint8_t* pairs = to + (Format::SCALED ? PANEL * 4 : 0);
        int first = group * matrix.group_pairs * 2, count = std::min(matrix.group_pairs * 2, matrix.inputs - first);
        for (int column = 0; column < PANEL; ++column) {
            int64_t row = matrix.output(panel, column);
            if (row < 0) continue;
            if (Format::SCALED) ((float*)to)[column] = scale[row * matrix.groups + group];
            int64_t from = row * matrix.inputs + first;
            for (int k = 0; k < count; ++k) Format::copy(pairs, k, column, weight, from + k);
        }
        to = pairs + matrix.group_pairs * Format::PAIR_BYTES;
    }
}
