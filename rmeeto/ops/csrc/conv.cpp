// Depthwise convolution and SiLU of one sequence in both directions, forward and backward.
//
// x (B, L, D), weights (D, K). Tap j of the forward direction is weight[K - 1 - j] and sees token t - j; the same tap
// of the backward direction sees token t + j. Tokens outside the sequence are 0.
#include <algorithm>

#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace {

constexpr int kTasks = 64;  // to aim at
constexpr int kAhead = 16;  // rows that are fetched before they are used

// As in conv1d/cpp.py, field by field. Strides in elements; what is not listed with strides is contiguous.
struct Conv {
    int64_t openmp, threads, batch, length, channels, kernel;
    const void* x;
    int64_t x_batch, x_token;
    const float *weight[2], *bias[2];
    void* y[2];
    const void* dy[2];
    int64_t dy_batch[2], dy_token[2];
    void* dx;
    float *dweight[2], *dbias[2];

    int64_t blocks() const { return (channels + W - 1) / W; }
    int64_t shares() const { return std::min(blocks(), (kTasks + batch - 1) / batch); }  // tasks of one sample
    int64_t tasks() const { return batch * shares(); }
    int64_t column() const { return length + 2 * (kernel - 1); }
    int width(int64_t block) const { return int(std::min<int64_t>(W, channels - block * W)); }
};

// Per block of channels and direction: the taps as vectors, nearest token first, then the bias.
Floats arrange_weights(const Conv& conv) {
    const int64_t size = conv.kernel + 1;
    Floats arranged(conv.blocks() * 2 * size * W);
    std::fill_n(arranged.get(), conv.blocks() * 2 * size * W, 0.0f);
    for (int64_t c = 0; c < conv.channels; ++c)
        for (int k = 0; k < 2; ++k) {
            float* to = arranged.get() + ((c / W) * 2 + k) * size * W + c % W;
            for (int64_t j = 0; j < conv.kernel; ++j) to[j * W] = conv.weight[k][c * conv.kernel + conv.kernel - 1 - j];
            to[conv.kernel * W] = conv.bias[k][c];
        }
    return arranged;
}

// Runs f(sample, block, scratch) over all samples and blocks of channels. The scratch has `columns` columns of tokens,
// each with kernel - 1 zeros at both ends.
template <typename F>
void for_columns(const Conv& conv, int columns, const F& f) {
    parallel(conv.tasks(), conv.threads, conv.openmp, [&] {
        Floats scratch(columns * conv.column() * W);
        std::fill_n(scratch.vectors(), columns * conv.column(), vf{});
        return [&, scratch = std::move(scratch)](int64_t task) {
            const int64_t sample = task / conv.shares(), share = task % conv.shares();
            for (int64_t block = share * conv.blocks() / conv.shares();
                 block < (share + 1) * conv.blocks() / conv.shares(); ++block)
                f(sample, block, scratch.vectors() + conv.kernel - 1);
        };
    });
}

template <typename T>
void load_column(const Conv& conv, int64_t sample, int64_t block, vf* x) {
    const T* from = (const T*)conv.x + sample * conv.x_batch + block * W;
    for (int64_t t = 0; t < conv.length; ++t, from += conv.x_token) {
        __builtin_prefetch(from + kAhead * conv.x_token);
        x[t] = load(from, conv.width(block));
    }
}

// A direction's sum over the taps at token *x. Kernel = 0: any length, known at run time.
template <int Kernel>
RMEETO_INLINE vf convolve(const Conv& conv, const vf* x, const vf* weights, bool backward) {
    const int64_t kernel = Kernel ? Kernel : conv.kernel;
    vf sum = weights[kernel];
    RMEETO_UNROLL
    for (int64_t j = 0; j < kernel; ++j) sum += x[backward ? j : -j] * weights[j];
    return sum;
}

template <int Kernel, typename T>
void forward(const Conv& conv) {
    const Floats arranged = arrange_weights(conv);
    for_columns(conv, 1, [&](int64_t sample, int64_t block, vf* x) {
        load_column<T>(conv, sample, block, x);
        const vf* weights = arranged.vectors() + block * 2 * (conv.kernel + 1);
        const int width = conv.width(block);
        T* y = (T*)conv.y[0] + sample * conv.length * conv.channels + block * W;
        T* y_b = (T*)conv.y[1] + sample * conv.length * conv.channels + block * W;
        for (int64_t t = 0; t < conv.length; ++t, y += conv.channels, y_b += conv.channels) {
            __builtin_prefetch(y + kAhead * conv.channels, 1);
            __builtin_prefetch(y_b + kAhead * conv.channels, 1);
            const vf sum = convolve<Kernel>(conv, x + t, weights, false);
            const vf sum_b = convolve<Kernel>(conv, x + t, weights + conv.kernel + 1, true);
            store(y, sum * sigmoid(sum), width);
            store(y_b, sum_b * sigmoid(sum_b), width);
        }
    });
}

// The gradients of one block of channels of one sample. After the column `x` come two for each direction's gradient
// before the activation. `parts` gets the gradients laid out like the weights.
template <int Kernel, typename T>
void backward_block(const Conv& conv, int64_t sample, int64_t block, const vf* weights, vf* x, vf* parts) {
    const int64_t kernel = Kernel ? Kernel : conv.kernel, size = kernel + 1;
    const int width = conv.width(block);
    load_column<T>(conv, sample, block, x);
    vf* const g[2] = {x + conv.column(), x + 2 * conv.column()};
    for (int k = 0; k < 2; ++k) {
        const T* dy = (const T*)conv.dy[k] + sample * conv.dy_batch[k] + block * W;
        for (int64_t t = 0; t < conv.length; ++t, dy += conv.dy_token[k]) {
            __builtin_prefetch(dy + kAhead * conv.dy_token[k]);
            const vf sum = convolve<Kernel>(conv, x + t, weights + k * size, k), s = sigmoid(sum);
            g[k][t] = load(dy, width) * (s + sum * s * (1.0f - s));
        }
    }
    T* dx = (T*)conv.dx + sample * conv.length * conv.channels + block * W;
    std::fill_n(parts, 2 * size, vf{});
    for (int64_t t = 0; t < conv.length; ++t, dx += conv.channels) {
        __builtin_prefetch(dx + kAhead * conv.channels, 1);
        vf sum = {};
        for (int k = 0; k < 2; ++k) {
            RMEETO_UNROLL
            for (int64_t j = 0; j < kernel; ++j) {
                sum += g[k][k ? t - j : t + j] * weights[k * size + j];
                parts[k * size + j] += g[k][t] * x[k ? t + j : t - j];
            }
            parts[k * size + kernel] += g[k][t];
        }
        store(dx, sum, width);
    }
}

// Gradients of the weights of a block of channels: the sum over samples.
void reduce_weights(const Conv& conv, int64_t block, const vf* parts) {
    const int64_t size = conv.kernel + 1;
    for (int k = 0; k < 2; ++k)
        for (int64_t j = 0; j < size; ++j) {
            vf sum = {};
            for (int64_t sample = 0; sample < conv.batch; ++sample)
                sum += parts[(sample * conv.blocks() + block) * 2 * size + k * size + j];
            for (int64_t c = block * W; c < std::min((block + 1) * W, conv.channels); ++c) {
                if (j < conv.kernel) conv.dweight[k][c * conv.kernel + conv.kernel - 1 - j] = sum[c % W];
                else conv.dbias[k][c] = sum[c % W];
            }
        }
}

template <int Kernel, typename T>
void backward(const Conv& conv) {
    const Floats arranged = arrange_weights(conv);
    const int64_t size = 2 * (conv.kernel + 1);
    const Floats parts(conv.batch * conv.blocks() * size * W);
    for_columns(conv, 3, [&](int64_t sample, int64_t block, vf* x) {
        backward_block<Kernel, T>(conv, sample, block, arranged.vectors() + block * size, x,
                                  parts.vectors() + (sample * conv.blocks() + block) * size);
    });
    parallel(conv.blocks(), conv.threads, conv.openmp,
             [&] { return [&](int64_t block) { reduce_weights(conv, block, parts.vectors()); }; });
}

template <typename T>
void forward(const Conv& conv) {
    conv.kernel == 4 ? forward<4, T>(conv) : forward<0, T>(conv);
}
template <typename T>
void backward(const Conv& conv) {
    conv.kernel == 4 ? backward<4, T>(conv) : backward<0, T>(conv);
}

}  // namespace

extern "C" {
void rmeeto_conv_forward_f32(const Conv* conv) { forward<float>(*conv); }
void rmeeto_conv_forward_bf16(const Conv* conv) { forward<bf16>(*conv); }
void rmeeto_conv_backward_f32(const Conv* conv) { backward<float>(*conv); }
void rmeeto_conv_backward_bf16(const Conv* conv) { backward<bf16>(*conv); }
int rmeeto_conv_size() { return sizeof(Conv); }
}
