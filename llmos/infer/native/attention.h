// Attention over the pages of the key-value cache, as they lie: no copies, whatever the order of a sequence's pages.
//
// A page holds 16 tokens of one key head: its keys are a panel (inputs: features, outputs: tokens), its values panels
// of 16 features (inputs: tokens). The query heads that share a key head are rows of one tile, as are neighbouring
// tokens. The softmax is the running one (Milakov and Gimelshein, arXiv 1805.02867).
#pragma once

#include "panels.h"

constexpr int PAGE = 16;           // tokens, step.py's BLOCK_TOKENS
constexpr int BLOCK = 128;         // keys between two updates of the running softmax
constexpr int TILE_ROWS = 48;      // rows that share the reading of a block

struct Pages {
    int kind = 0, head_dim = 0, kv_heads = 0, blocks = 0;
    uint8_t* data = nullptr;

    int pair_bytes() const { return kind == KIND_F32 ? F32::PAIR_BYTES : Bf16::PAIR_BYTES; }
    int64_t key_bytes() const { return int64_t(head_dim / 2) * pair_bytes(); }
    int64_t panel_bytes() const { return int64_t(PAGE / 2) * pair_bytes(); }
    int64_t page_bytes() const { return key_bytes() + round_up(head_dim, PANEL) / PANEL * panel_bytes(); }
    uint8_t* page(int layer, int block, int head) const {
        return data + ((int64_t(layer) * blocks + block) * kv_heads + head) * page_bytes();
    }
};

// Neighbouring tokens of a sequence, which see its keys up to their own position, `window` of them if that is not 0.
struct Queries {
    int first, count;      // tokens of the step
    int position;          // of the first
    const int* blocks;     // of the sequence
};

// Which keys to read: whole pages, the last one up to `end`.
struct Keys {
    int begin, end;
};

// Running results of the rows of a tile, and room for one block, in memory that is handed in.
template <class Format> struct Rows {
    using Act = typename Format::Act;
    float *scores, *sums, *largest, *totals;
    Act *queries, *shares;

    static int64_t bytes(int rows, int head_dim, int padded) {
        return round_up(rows, PANEL) * (2 * BLOCK + padded + 2 + head_dim) * 4;
    }

    Rows(uint8_t* room, int rows, int head_dim, int padded) {
        scores = (float*)room, sums = scores + rows * BLOCK, largest = sums + rows * padded, totals = largest + rows;
        queries = (Act*)(totals + rows), shares = (Act*)((float*)queries + rows * head_dim);
        std::fill(sums, largest, 0.0f), std::fill(largest, totals, -1e30f), std::fill(totals, totals + rows, 0.0f);
    }
};

// scores[row][key] = query · key for the keys of one block; one page more than `page_count` is asked for ahead.
template <class Format>
void score(Rows<Format>& rows, int count, const Pages& pages, const uint8_t* const* page, int page_count) {
    int width = pages.head_dim;
    for (int p = 0; p < page_count; ++p) {
        for (int64_t i = 0; i < pages.page_bytes(); i += 64) __builtin_prefetch(page[p + 1] + i);
        each_tile(count, [&](auto height, int first, int, int) {
            constexpr int M = decltype(height)::value;
            V sums[M][SPAN] = {};
            multiply<Format>(sums, &rows.queries[int64_t(first) * width], width, page[p], width / 2);
            for (int m = 0; m < M; ++m)
                for (int i = 0; i < SPAN; ++i)
                    store(&rows.scores[(first + m) * BLOCK + p * PAGE + i * LANES], sums[m][i]);
        });
    }
}

// Scores of what a row does not see become -infinity. `begin` is the first key's position.
template <class Format>
void hide(Rows<Format>& rows, int count, int group, int position, int begin, int width, int window) {
    for (int row = 0; row < count; ++row) {
        float* score = &rows.scores[row * BLOCK];
        int at = position + row / group - begin;  // itself, in this block
        for (int i = std::max(0, at + 1); i < width; ++i) score[i] = -INFINITY;
        if (window)
            for (int i = 0; i < std::min(width, at - window + 1); ++i) score[i] = -INFINITY;
    }
}

// shares = e^(scores - largest so far); what was summed before shrinks to the new measure.
template <class Format> void weigh(Rows<Format>& rows, int count, int width, int padded) {
    for (int row = 0; row < count; ++row) {
        const float* score = &rows.scores[row * BLOCK];
        V most = splat(rows.largest[row]);
        for (int i = 0; i < width; i += LANES) {
            V x = load(score + i);
            most = x > most ? x : most;
        }
        float now = largest(most);
        V total{};
        for (int i = 0; i < width; i += LANES) {
            V share = exp(load(score + i) - now);
            total += share;
            store(&rows.shares[row * BLOCK + i], share);
        }
        float shrink = exp(splat(rows.largest[row] - now))[0];
        rows.largest[row] = now;
        rows.totals[row] = rows.totals[row] * shrink + sum(total);
        if (shrink != 1)
            for (int i = 0; i < padded; ++i) rows.sums[row * padded + i] *= shrink;
    }
}

// sums[row] += shares[row] · values.
template <class Format>
void gather(Rows<Format>& rows, int count, const Pages& pages, const uint8_t* const* page, int keys, int padded) {
    for (int panel = 0; panel < padded / PANEL; ++panel)
        each_tile(count, [&](auto height, int first, int, int) {
            constexpr int M = decltype(height)::value;
            V sums[M][SPAN];
            float* out = &rows.sums[first * padded + panel * PANEL];
            for (int m = 0; m < M; ++m)
                for (int i = 0; i < SPAN; ++i) sums[m][i] = load(out + m * padded + i * LANES);
            for (int at = 0; at < keys; at += PAGE) {
                const uint8_t* values = page[at / PAGE] + pages.key_bytes() + panel * pages.panel_bytes();
                int pairs = std::min(PAGE, keys - at + 1) / 2;  // the slots after the last key hold no numbers yet
                multiply<Format>(sums, &rows.shares[first * BLOCK + at], BLOCK, values, pairs);
            }
            for (int m = 0; m < M; ++m)
                for (int i = 0; i < SPAN; ++i) store(out + m * padded + i * LANES, sums[m][i]);
        });
}

// Attention of `rows` (their queries are there) to `keys` of one head.
template <class Format>
void attend(Rows<Format>& rows, int count, int group, const Pages& pages, int layer, int head, const Queries& queries,
            Keys keys, int window) {
    int padded = int(round_up(pages.head_dim, PANEL));
    int last = queries.position + queries.count - 1;
    for (int begin = keys.begin; begin < keys.end; begin += BLOCK) {
        int length = std::min(BLOCK, keys.end - begin);
        int page_count = (length + PAGE - 1) / PAGE, width = page_count * PAGE;
        const uint8_t* page[BLOCK / PAGE + 1];
        for (int p = 0; p <= page_count; ++p) {
            int at = std::min(begin / PAGE + p, (keys.end - 1) / PAGE);  // the last one is followed by itself
            page[p] = pages.page(layer, queries.blocks[at], head);
        }
        score(rows, count, pages, page, page_count);
        if (begin + width - 1 > queries.position || (window && begin < last - window + 1))
            hide(rows, count, group, queries.position, begin, width, window);
        weigh(rows, count, width, padded);
        gather(rows, count, pages, page, length, padded);
    }
}
