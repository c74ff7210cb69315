// One forward pass of a decoder over the pages of its key-value cache, in one parallel region.
//
// A layer has two halves, attention and feed-forward; each adds to `hidden` [N, D]. A pass runs the halves of a range:
// all of them, or what lies between two exchanges with other ranks. Phases of a half are separated by Member::each.
// Rows are padded to 16 columns everywhere; what is there is 0.
#pragma once

#include "model.h"
#include "product.h"

// bindings.py's Request, field for field.
struct Request {
    int32_t tokens, sequences, logits, row_blocks, first_half, last_half, embed, keep, threads;
    const int32_t *token_N, *position_N, *start_S, *block_SM, *logits_at_L;
    float *hidden, *logits_out;
};

struct Pass {
    Model& model;
    const Shape& shape;
    const Request& asked;
    std::vector<Queries> queries;
    int splits = 1, group = 1, padded = 0;
    int64_t hidden_stride, qkv_stride, room_bytes;

    Pass(Model& m, const Request& r) : model(m), shape(m.shape), asked(r) {
        hidden_stride = round_up(shape.hidden, PANEL), qkv_stride = round_up(shape.qkv(), PANEL);
        group = shape.heads / shape.kv_heads, padded = int(round_up(shape.head_dim, PANEL));
        int height = std::max(1, TILE_ROWS / group), longest = 0;
        for (int s = 0; s < r.sequences; ++s)
            for (int first = r.start_S[s]; first < r.start_S[s + 1]; first += height) {
                int count = std::min(height, r.start_S[s + 1] - first);
                queries.push_back({first, count, r.position_N[first], r.block_SM + int64_t(s) * r.row_blocks});
                longest = std::max(longest, r.position_N[first]);
            }
        int parts = int(queries.size()) * shape.kv_heads;  // too few to go round: also share out the keys
        if (parts && parts < 2 * r.threads)
            splits = std::min((4 * r.threads + parts - 1) / parts, 1 + longest / (2 * BLOCK));
        make_room();
    }

    void make_room() {
        model.normal.shape(std::max(asked.tokens, asked.logits), shape.hidden);
        model.qkv.reach(asked.tokens * qkv_stride * 4);
        model.mixed.shape(asked.tokens, shape.queries());
        model.features.shape(asked.tokens, shape.features);
        room_bytes = round_up(Rows<F32>::bytes(std::max(TILE_ROWS, group), shape.head_dim, padded), 64);
        model.room.reach(asked.threads * room_bytes);
        if (splits > 1) model.partial.reach(int64_t(splits) * asked.tokens * shape.heads * (padded + PANEL) * 4);
    }

    float* hidden(int row) const { return asked.hidden + row * hidden_stride; }
    float* qkv(int row) const { return (float*)model.qkv.get() + row * qkv_stride; }

    // Where part `split` of a row's attention waits to be joined: its sums, then its largest score and its total.
    float* partial(int split, int token, int head) const {
        int64_t row = (int64_t(split) * asked.tokens + token) * shape.heads + head;
        return (float*)model.partial.get() + row * (padded + PANEL);
    }

    void run(Member& member) {
        if (asked.embed) embed(member);
        for (int half = asked.first_half; half < asked.last_half; ++half)
            if (half % 2 == 0) attention(member, half / 2);
            else feed_forward(member, model.layers[half / 2]);
        if (asked.logits) {
            normalize(member, asked.logits, asked.logits_at_L, model.norm, model.output);
            int64_t stride = round_up(shape.vocabulary, PANEL);
            product(member, model.output, model.normal, asked.logits, [&](int row, int panel, const float* values) {
                memcpy(asked.logits_out + row * stride + panel * PANEL, values, PANEL * 4);
            });
        }
    }

    void embed(Member& member) {
        member.each(asked.tokens, [&](int row) {
            int64_t from = int64_t(asked.token_N[row]) * shape.hidden;
            float* to = hidden(row);
            for (int i = 0; i < shape.hidden; ++i)
                to[i] = model.embedding_bits == 32 ? ((const float*)model.embedding)[from + i]
                                                   : from_bf16(((const uint16_t*)model.embedding)[from + i]);
            for (int i = shape.hidden; i < hidden_stride; ++i) to[i] = 0;
        });
    }

    // model.normal = RMSNorm (arXiv 1910.07467) of `rows` rows of hidden: the first ones, or those that `which` names.
    void normalize(Member& member, int rows, const int32_t* which, const Floats& weight, const Matrix& reader) {
        member.each(rows, [&](int row) {
            const float* x = hidden(which ? which[row] : row);
            V squares{};
            for (int i = 0; i < hidden_stride; i += LANES) squares += load(x + i) * load(x + i);
            float scale = 1 / std::sqrt(sum(squares) / shape.hidden + shape.eps);
            for (int i = 0; i < hidden_stride; i += LANES)
                model.normal.put(row, i, load(x + i) * scale * load(&weight[i]), reader);
        });
    }

    void attention(Member& member, int at) {
        const Layer& layer = model.layers[at];
        normalize(member, asked.tokens, nullptr, layer.attention_norm, layer.qkv);
        product(member, layer.qkv, model.normal, asked.tokens, [&](int row, int panel, const float* values) {
            float* to = qkv(row) + panel * PANEL;
            const float* bias = layer.qkv_bias.empty() ? nullptr : &layer.qkv_bias[panel * PANEL];
            for (int i = 0; i < PANEL; ++i) to[i] = values[i] + (bias ? bias[i] : 0);
        });
        with_pages([&](auto format) {
            rotate<decltype(format)>(member, layer, at);
            attend<decltype(format)>(member, layer, at);
        });
        add_product(member, layer.out, model.mixed);
    }

    template <class Work> void with_pages(Work&& work) {
        if (model.pages.kind == KIND_F32) work(F32{});
        else work(Bf16{});
    }

    // Turns queries and keys by their position, and puts keys and values into their pages.
    template <class Format> void rotate(Member& member, const Layer& layer, int at) {
        int heads = shape.kv_heads, height = std::clamp(asked.tokens * heads / (4 * member.threads()), 1, PAGE);
        int parts = (asked.tokens + height - 1) / height;
        member.each(parts * heads, [&](int part) {
            int head = part % heads, first = part / heads * height;
            const int32_t* after = std::upper_bound(asked.start_S, asked.start_S + asked.sequences, first);
            int sequence = int(after - asked.start_S) - 1;
            for (int row = first; row < std::min(asked.tokens, first + height); ++row) {
                while (row >= asked.start_S[sequence + 1]) ++sequence;
                rotate_row<Format>(layer, at, row, sequence, head);
            }
        });
    }

    template <class Format> void rotate_row(const Layer& layer, int at, int row, int sequence, int head) {
        int width = shape.head_dim, position = asked.position_N[row], slot = position % PAGE;
        float* keys = qkv(row) + (shape.heads + head) * width;
        const float* values = keys + shape.kv_heads * width;
        for (int i = 0; i < group; ++i) turn(qkv(row) + (head * group + i) * width, position, layer.query_norm);
        turn(keys, position, layer.key_norm);
        int block = asked.block_SM[int64_t(sequence) * asked.row_blocks + position / PAGE];
        uint8_t* page = model.pages.page(at, block, head);
        for (int i = 0; i < width; ++i) Format::put(page, i, slot, keys[i]);
        uint8_t* to = page + model.pages.key_bytes();
        // The other of its pair is read as well: nothing may be there that is not a number.
        bool alone = slot % 2 == 0 && row + 1 == asked.start_S[sequence + 1];
        for (int i = 0; i < width; ++i) {
            uint8_t* panel = to + i / PANEL * model.pages.panel_bytes();
            Format::put(panel, slot, i % PANEL, values[i]);
            if (alone) Format::put(panel, slot + 1, i % PANEL, 0);
        }
    }

    // RoPE in the half-rotation layout of models/rope.py, after the norm of the head if there is one.
    void turn(float* x, int position, const Floats& norm) const {
        int half = shape.head_dim / 2;
        const float *cosine = &model.cosines[int64_t(position) * half], *sine = &model.sines[int64_t(position) * half];
        if (!norm.empty()) {
            float squares = 0;
            for (int i = 0; i < 2 * half; ++i) squares += x[i] * x[i];
            float scale = 1 / std::sqrt(squares / shape.head_dim + shape.eps);
            for (int i = 0; i < 2 * half; ++i) x[i] *= scale * norm[i];
        }
        for (int i = 0; i < half; ++i) {
            float a = x[i], b = x[i + half];
            x[i] = a * cosine[i] - b * sine[i];
            x[i + half] = b * cosine[i] + a * sine[i];
        }
    }

    // model.mixed = attention of every query head.
    template <class Format> void attend(Member& member, const Layer& layer, int at) {
        member.each(int(queries.size()) * shape.kv_heads * splits, [&](int part) {
            int split = part % splits, head = part / splits % shape.kv_heads;
            const Queries& some = queries[queries.size() - 1 - part / splits / shape.kv_heads];  // long ones first
            int count = some.count * group, width = shape.head_dim;
            Rows<Format> rows(model.room.get() + member.index * room_bytes, count, width, padded);
            float scale = 1 / std::sqrt(float(width));
            for (int row = 0; row < count; ++row) {
                const float* query = qkv(some.first + row / group) + (head * group + row % group) * width;
                for (int i = 0; i < width; ++i) assign(rows.queries[row * width + i], query[i] * scale);
            }
            ::attend(rows, count, group, model.pages, at, head, some, keys(some, split), shape.window);
            for (int row = 0; row < count; ++row) {
                int token = some.first + row / group, query_head = head * group + row % group;
                if (splits == 1) mix(token, query_head, &rows.sums[row * padded], rows.totals[row], layer.out);
                else {
                    float* to = partial(split, token, query_head);
                    memcpy(to, &rows.sums[row * padded], padded * 4);
                    to[padded] = rows.largest[row], to[padded + 1] = rows.totals[row];
                }
            }
        });
        if (splits == 1) return;
        member.each(asked.tokens * shape.heads, [&](int i) { join(i / shape.heads, i % shape.heads, layer.out); });
    }

    static void assign(float& to, float x) { to = x; }
    static void assign(uint16_t& to, float x) { to = to_bf16(x); }

    Keys keys(const Queries& some, int split) const {
        int end = some.position + some.count;
        int begin = shape.window ? std::max(0, some.position - shape.window + 1) / PAGE : 0;  // in pages
        int pages = (end + PAGE - 1) / PAGE - begin;
        return {(begin + pages * split / splits) * PAGE, std::min(end, (begin + pages * (split + 1) / splits) * PAGE)};
    }

    void join(int token, int head, const Matrix& reader) const {
        float largest = -1e30f, total = 0;
        for (int s = 0; s < splits; ++s) largest = std::max(largest, partial(s, token, head)[padded]);
        float* sums = partial(0, token, head);
        for (int s = 0; s < splits; ++s) {
            const float* part = partial(s, token, head);
            float weight = std::exp(part[padded] - largest);
            total += weight * part[padded + 1];
            for (int i = 0; i < padded; ++i) sums[i] = (s ? sums[i] : 0) + weight * part[i];
        }
        mix(token, head, sums, total, reader);
    }

    void mix(int token, int head, const float* sums, float total, const Matrix& reader) const {
        for (int i = 0; i < shape.head_dim; ++i)
            model.mixed.put(token, head * shape.head_dim + i, sums[i] / total, reader);
    }

    void feed_forward(Member& member, const Layer& layer) {
        normalize(member, asked.tokens, nullptr, layer.mlp_norm, layer.gate_up);
        product(member, layer.gate_up, model.normal, asked.tokens, [&](int row, int panel, const float* values) {
            for (int i = 0; i < PANEL; i += LANES) {
                V gated = silu(load(values + i)) * load(values + PANEL + i);
                model.features.put(row, panel * PANEL + i, gated, layer.down);
            }
        });
        add_product(member, layer.down, model.features);
    }

    void add_product(Member& member, const Matrix& matrix, const Activations& a) {
        product(member, matrix, a, asked.tokens, [&](int row, int panel, const float* values) {
            float* to = hidden(row) + panel * PANEL;
            for (int i = 0; i < PANEL; ++i) to[i] = (asked.keep ? to[i] : 0) + values[i];
        });
    }
};
