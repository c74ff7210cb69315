// What bindings.py calls: a model is made, filled and run. Nothing here throws; 0 is success, 1 too little memory.
#include <omp.h>

#include "step.h"

namespace {

template <class Work> int guarded(Work&& work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

Floats padded(const float* values, int count) {
    Floats result(round_up(count, PANEL), 0.0f);
    std::copy(values, values + count, result.begin());
    return result;
}

Floats& vector_of(Model& model, int layer, int which) {
    if (layer < 0) return model.norm;
    Layer& of = model.layers[layer];
    Floats* vectors[] = {&of.attention_norm, &of.mlp_norm, &of.qkv_bias, &of.query_norm, &of.key_norm};
    return *vectors[which];
}

Matrix& matrix_of(Model& model, int layer, int which) {
    if (layer < 0) return model.output;
    Layer& of = model.layers[layer];
    Matrix* matrices[] = {&of.qkv, &of.out, &of.gate_up, &of.down};
    return *matrices[which];
}

}  // namespace

extern "C" {

const char* llmos_instructions() {
    return LLMOS_DOT_BF16 ? "AVX512-BF16" : LANES == 16 ? "AVX512" : LANES == 8 ? "AVX2" : "128-bit vectors";
}

// cosines and sines: [positions, head_dim / 2].
int llmos_create(const Shape* shape, const float* cosines, const float* sines, Model** model) {
    return guarded([&] {
        auto made = std::make_unique<Model>(*shape);
        int64_t count = int64_t(shape->positions) * (shape->head_dim / 2);
        made->cosines.assign(cosines, cosines + count), made->sines.assign(sines, sines + count);
        *model = made.release();
    });
}

void llmos_destroy(Model* model) { delete model; }

int llmos_vector(Model* model, int layer, int which, const float* values, int count) {
    return guarded([&] { vector_of(*model, layer, which) = padded(values, count); });
}

// The table is read where it lies; it must outlive the model.
void llmos_embedding(Model* model, const void* table, int bits) {
    model->embedding = table, model->embedding_bits = bits;
}

// Packs a matrix of shard.py; `which` counts qkv, out, gate_up, down, `layer` -1 is the output matrix.
int llmos_matrix(Model* model, int layer, int which, const void* weight, const float* scale, int outputs, int inputs,
                 int bits, int group, int threads) {
    return guarded([&] {
        Matrix& matrix = matrix_of(*model, layer, which);
        matrix.kind = bits, matrix.outputs = outputs, matrix.inputs = inputs;
        matrix.halves = layer >= 0 && which == 2 ? 2 : 1;
        matrix.panels = int(round_up(outputs / matrix.halves, PANEL) / PANEL) * matrix.halves;
        matrix.groups = group ? inputs / group : 1;
        matrix.group_pairs = ((group ? group : inputs) + 1) / 2;
        with_format(bits, [&](auto format) {
            using Format = decltype(format);
            int64_t group_bytes = (Format::SCALED ? PANEL * 4 : 0) + int64_t(matrix.group_pairs) * Format::PAIR_BYTES;
            matrix.panel_bytes = matrix.groups * group_bytes;
            matrix.data = model->weights.take(matrix.bytes());
#pragma omp parallel for num_threads(threads)
            for (int panel = 0; panel < matrix.panels; ++panel) pack_panel<Format>(matrix, panel, weight, scale);
        });
    });
}

int64_t llmos_cache_bytes(const Model* model) { return model->cache.bytes(); }

int64_t llmos_weight_bytes(const Model* model) {
    int64_t bytes = model->output.bytes();
    for (const Layer& layer : model->layers)
        bytes += layer.qkv.bytes() + layer.out.bytes() + layer.gate_up.bytes() + layer.down.bytes();
    return bytes;
}

int llmos_run(Model* model, const Request* request) {
    return guarded([&] {
        Pass pass(*model, *request);
#pragma omp parallel num_threads(request->threads)
        {
#pragma omp single
            model->team.count(omp_get_num_threads());
            Member member(model->team, omp_get_thread_num());
            pass.run(member);
        }
    });
}

// Reads `bytes` (a multiple of 64) once with all threads, as a step reads weights: what memory can give.
double llmos_read(const uint8_t* from, int64_t bytes, int threads) {
    double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        int64_t lines = bytes / 64, me = omp_get_thread_num(), all = omp_get_num_threads();
        VU sums[64 / sizeof(VU)] = {};
        for (int64_t line = lines * me / all; line < lines * (me + 1) / all; ++line)
            for (int i = 0; i < int(64 / sizeof(VU)); ++i) sums[i] += load_as<VU>(from + line * 64 + i * sizeof(VU));
        for (VU part : sums)
            for (int i = 0; i < LANES; ++i) total += part[i];
    }
    return total;
}

}  // extern "C"
