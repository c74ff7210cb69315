// What one rank holds: packed weights, the key-value cache, and room for the activations of a step.
#pragma once

#include <sys/mman.h>

#include <deque>
#include <memory>
#include <new>
#include <vector>

#include "attention.h"
#include "team.h"

// Memory that begins as zeros, in huge pages where the kernel has them: weights are streamed, and pages cost a walk.
class Memory {
  public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { free(); }

    uint8_t* get() const { return _data; }
    int64_t bytes() const { return _bytes; }

    void allocate(int64_t bytes) {
        free();
        if (bytes == 0) return;
        void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        madvise(data, bytes, MADV_HUGEPAGE);
#endif
        _data = (uint8_t*)data, _bytes = bytes;
    }

    void reach(int64_t bytes) {
        if (bytes > _bytes) allocate(bytes);
    }

  private:
    void free() {
        if (_data) munmap(_data, _bytes);
        _data = nullptr, _bytes = 0;
    }
    uint8_t* _data = nullptr;
    int64_t _bytes = 0;
};

// Weights, one after the other in large pieces: a matrix of its own rarely fills a huge page, and the processor's
// prefetch ends where a page does.
class Arena {
  public:
    uint8_t* take(int64_t bytes) {
        bytes = round_up(bytes, 64);
        if (bytes > _left) {
            int64_t size = std::max(bytes, PIECE_BYTES);
            _pieces.emplace_back().allocate(size + HUGE_BYTES);
            _next = (uint8_t*)round_up((int64_t)_pieces.back().get(), HUGE_BYTES), _left = size;
        }
        uint8_t* taken = _next;
        _next += bytes, _left -= bytes;
        return taken;
    }

  private:
    static constexpr int64_t HUGE_BYTES = 1 << 21, PIECE_BYTES = 1 << 26;
    std::deque<Memory> _pieces;
    uint8_t* _next = nullptr;
    int64_t _left = 0;
};

// Activations of some rows, padded to whole panels.
struct Activations {
    Memory memory;
    int64_t stride = 0;

    void shape(int rows, int columns) {
        stride = round_up(columns, PANEL);
        memory.reach(rows * stride * 4);
    }
    template <class Act> Act* row(int row) const { return (Act*)memory.get() + row * stride; }

    // In the type that the matrix which reads them wants.
    template <class T> INLINE void put(int at, int column, T x, const Packed& reader) const {
        if (reader.halved_activations()) write(row<uint16_t>(at) + column, x);
        else write(row<float>(at) + column, x);
    }

  private:
    template <class Act> static INLINE void write(Act* to, V x) { store(to, x); }
    static INLINE void write(float* to, float x) { *to = x; }
    static INLINE void write(uint16_t* to, float x) { *to = to_bf16(x); }
};

// bindings.py's Shape, field for field.
struct Shape {
    int32_t layers, hidden, heads, kv_heads, head_dim, features, vocabulary, window, blocks, cache_bits, positions;
    float eps;

    int queries() const { return heads * head_dim; }
    int qkv() const { return (heads + 2 * kv_heads) * head_dim; }
};

using Floats = std::vector<float>;

using Matrix = Packed;

struct Layer {
    Floats attention_norm, mlp_norm, qkv_bias, query_norm, key_norm;
    Matrix qkv, out, gate_up, down;
};

struct Model {
    Shape shape;
    std::vector<Layer> layers;
    Floats norm, cosines, sines;  // the latter [positions, head_dim / 2]
    Matrix output;
    const void* embedding = nullptr;
    int embedding_bits = 0;
    Pages pages;
    Arena weights;
    Memory cache;
    Team team;

    Activations normal, mixed, features;
    Memory qkv, partial, room;

    explicit Model(const Shape& s) : shape(s), layers(s.layers) {
        pages.kind = s.cache_bits, pages.head_dim = s.head_dim, pages.kv_heads = s.kv_heads, pages.blocks = s.blocks;
        cache.allocate(pages.page_bytes() * s.layers * s.blocks * s.kv_heads);
        pages.data = cache.get();
    }
};
