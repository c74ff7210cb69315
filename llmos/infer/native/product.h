// The product of rows of activations with a packed matrix, shared out among the threads.
#pragma once

#include "model.h"

// How a product is cut: `ranges` of panels times `blocks` of rows. Activations of a block fit the second-level cache
// beside a panel. With one block, every panel comes from memory once; with several, all threads work at the same
// panels, which the third-level cache then holds.
struct Cut {
    int ranges, blocks;

    Cut(const Packed& matrix, int rows, int threads) {
        constexpr int64_t CACHE_BYTES = 1 << 18;
        int64_t row_bytes = round_up(matrix.inputs, PANEL) * (matrix.halved_activations() ? 2 : 4);
        int64_t height = std::max<int64_t>(2 * MAX_ROWS, CACHE_BYTES / row_bytes / MAX_ROWS * MAX_ROWS);
        int panels = matrix.panels / matrix.halves;
        blocks = rows * row_bytes <= 2 * CACHE_BYTES ? 1 : int((rows + height - 1) / height);
        int64_t several = std::max<int64_t>(1, CACHE_BYTES / 2 / (matrix.panel_bytes * matrix.halves));
        ranges = blocks == 1 ? std::min(panels, 4 * threads) : int((panels + several - 1) / several);
    }
};

// Calls finish(row, panel, values) with 16 results of a row, or with 16 of each half one after the other.
template <class Finish>
void product(Member& member, const Packed& matrix, const Activations& a, int rows, Finish&& finish) {
    const Cut cut(matrix, rows, member.threads());
    int panels = matrix.panels / matrix.halves, halves = matrix.halves;
    with_format(matrix.kind, [&](auto format) {
        using Format = decltype(format);
        member.each(cut.ranges * cut.blocks, [&](int part) {
            int range = part / cut.blocks, block = part % cut.blocks;
            int top = int(int64_t(rows) * block / cut.blocks);
            int count = int(int64_t(rows) * (block + 1) / cut.blocks) - top;
            int last = int(int64_t(panels) * (range + 1) / cut.ranges);
            for (int panel = int(int64_t(panels) * range / cut.ranges); panel < last; ++panel)
                each_tile(count, [&](auto height, int first, int number, int tiles) {
                    constexpr int M = decltype(height)::value;
                    float values[M * 2 * PANEL];
                    for (int h = 0; h < halves; ++h) {
                        const uint8_t* w = matrix.data + (int64_t(panel) * halves + h) * matrix.panel_bytes;
                        tile<Format, M>(matrix, a.row<typename Format::Act>(top + first), a.stride, w,
                                        matrix.ahead(w, number, tiles), values + h * PANEL, halves * PANEL);
                    }
                    for (int m = 0; m < M; ++m) finish(top + first + m, panel, values + m * halves * PANEL);
                });
        });
    });
}
