// Residual add and RMS normalisation, forward and backward, a row of C channels at a time.
//
// sum = residual + hidden in fp32; normed = sum / sqrt(mean(sum^2) + eps) * weight.
#include <algorithm>
#include <cmath>

#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace {

constexpr int kRows = 32;  // of a task

// As in add_norm/cpp.py, field by field. All tensors are contiguous rows.
struct Norm {
    int64_t openmp, threads, rows, channels;
    const void* hidden;
    const float *residual, *weight;  // residual may be null
    double eps;
    float* sum;
    void* normed;
    const float* dsum;
    const void* dnormed;
    void* dhidden;
    float *dresidual, *dweight;

    int64_t tasks() const { return (rows + kRows - 1) / kRows; }
    float reciprocal_rms(vf squares) const { return 1.0f / std::sqrt(total(squares) / float(channels) + float(eps)); }
};

// Hidden of type H, normed of type T.
template <typename H, typename T>
void forward_row(const Norm& norm, int64_t row) {
    const int64_t at = row * norm.channels;
    vf squares = {};
    for_blocks(norm.channels, [&](int64_t c, int width) RMEETO_LAMBDA {
        vf x = load((const H*)norm.hidden + at + c, width);
        if (norm.residual) x += load(norm.residual + at + c, width);
        squares += x * x;
        store(norm.sum + at + c, x, width);
    });
    const float scale = norm.reciprocal_rms(squares);
    for_blocks(norm.channels, [&](int64_t c, int width) RMEETO_LAMBDA {
        const vf x = load(norm.sum + at + c, width) * scale;
        store((T*)norm.normed + at + c, x * load(norm.weight + c, width), width);
    });
}

template <typename H, typename T>
void forward(const Norm& norm) {
    parallel(norm.tasks(), norm.threads, norm.openmp, [&] {
        return [&](int64_t task) {
            for (int64_t row = task * kRows; row < std::min((task + 1) * kRows, norm.rows); ++row)
                forward_row<H, T>(norm, row);
        };
    });
}

// `dweight` is added to.
template <typename H, typename T>
void backward_row(const Norm& norm, int64_t row, float* dweight) {
    const int64_t at = row * norm.channels;
    vf squares = {}, dot = {};
    for_blocks(norm.channels, [&](int64_t c, int width) RMEETO_LAMBDA {
        const vf x = load(norm.sum + at + c, width);
        squares += x * x;
    });
    const float scale = norm.reciprocal_rms(squares);
    for_blocks(norm.channels, [&](int64_t c, int width) RMEETO_LAMBDA {
        const vf x = load(norm.sum + at + c, width) * scale;
        const vf d = load((const T*)norm.dnormed + at + c, width);
        store(dweight + c, load(dweight + c) + d * x);
        dot += d * load(norm.weight + c, width) * x;
    });
    const float mean = total(dot) / float(norm.channels);
    for_blocks(norm.channels, [&](int64_t c, int width) RMEETO_LAMBDA {
        const vf x = load(norm.sum + at + c, width) * scale;
        const vf d = load((const T*)norm.dnormed + at + c, width) * load(norm.weight + c, width);
        const vf dx = load(norm.dsum + at + c, width) + (d - x * mean) * scale;
        store((H*)norm.dhidden + at + c, dx, width);
        store(norm.dresidual + at + c, dx, width);
    });
}

template <typename H, typename T>
void backward(const Norm& norm) {
    const int64_t padded = (norm.channels + W - 1) / W * W;
    const Floats parts(norm.tasks() * padded);
    parallel(norm.tasks(), norm.threads, norm.openmp, [&] {
        return [&](int64_t task) {
            float* dweight = parts.get() + task * padded;
            std::fill_n(dweight, padded, 0.0f);
            for (int64_t row = task * kRows; row < std::min((task + 1) * kRows, norm.rows); ++row)
                backward_row<H, T>(norm, row, dweight);
        };
    });
    for_blocks(norm.channels, [&](int64_t c, int width) {
        vf sum = {};
        for (int64_t task = 0; task < norm.tasks(); ++task) sum += load(parts.get() + task * padded + c);
        store(norm.dweight + c, sum, width);
    });
}

}  // namespace

// The suffix names the types of hidden and normed.
extern "C" {
void rmeeto_norm_forward_f32_f32(const Norm* norm) { forward<float, float>(*norm); }
void rmeeto_norm_forward_f32_bf16(const Norm* norm) { forward<float, bf16>(*norm); }
void rmeeto_norm_forward_bf16_f32(const Norm* norm) { forward<bf16, float>(*norm); }
void rmeeto_norm_forward_bf16_bf16(const Norm* norm) { forward<bf16, bf16>(*norm); }
void rmeeto_norm_backward_f32_f32(const Norm* norm) { backward<float, float>(*norm); }
void rmeeto_norm_backward_f32_bf16(const Norm* norm) { backward<float, bf16>(*norm); }
void rmeeto_norm_backward_bf16_f32(const Norm* norm) { backward<bf16, float>(*norm); }
void rmeeto_norm_backward_bf16_bf16(const Norm* norm) { backward<bf16, bf16>(*norm); }
int rmeeto_norm_size() { return sizeof(Norm); }
}
