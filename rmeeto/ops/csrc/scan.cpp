// Selective scan, forward and backward, of one direction or of two that share an output and a gate.
//
// B batch, L tokens, D channels, N states. One register holds W channels of one token; a group of S = W / 2 states of
// these channels stays in registers while time runs. Tokens are taken kChunk at a time: what does not depend on the
// state (softplus, D u, the gate) is done for a whole chunk, and between that each group of states scans the chunk.
// The forward pass stores the state at the start of each chunk; the backward pass recomputes the chunk from there.
//
// A task is one sample and a few blocks of W channels. How channels are shared out depends on the shapes alone, and
// sums over tasks are taken in a fixed order: results do not depend on the number of threads.
#include <algorithm>
#include <type_traits>

#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace {

constexpr int S = W / 2;                  // the 2 S sums over channels of dB and dC then fill one register
constexpr int kTogether = S < 4 ? S : 4;  // states whose exponentials are taken in step
constexpr int kTasks = 64;                // tasks to aim at; more of them cost memory in the backward pass
// Tokens between stored states, and what a state is padded to; at the end of this file Python learns them.
constexpr int kChunk = 16, kPadChannels = 16, kPadStates = 8;
static_assert(kPadChannels % W == 0 && kPadStates % S == 0, "a stored state is whole registers");

// As in selective_scan/cpp.py, field by field. Strides in elements; null pointers for what is absent.
struct Direction {
    const void *u, *delta, *B, *C;
    const float *A, *D, *bias;
    int64_t u_batch, u_token, delta_batch, delta_token, B_batch, B_token, B_state, C_batch, C_token, C_state;
    int64_t reverse;
    float* states;  // (B, chunks, padded D * padded N), written by the forward pass if not null
    void *du, *ddelta, *dB, *dC;
    float *dA, *dD, *dbias;
};

struct Scan {
    int64_t openmp, threads, directions, batch, length, channels, num_states, softplus, halve;
    const void* z;
    int64_t z_batch, z_token;
    void* out;
    const void* dout;
    int64_t dout_batch, dout_token;
    void* dz;
    Direction direction[2];

    int64_t blocks() const { return (channels + W - 1) / W; }
    int64_t groups() const { return (num_states + S - 1) / S; }
    int64_t rows() const { return groups() * S; }  // states with their padding
    int64_t chunks() const { return (length + kChunk - 1) / kChunk; }
    int64_t shares() const { return std::min(blocks(), (kTasks + batch - 1) / batch); }  // tasks of one sample
    int64_t first_block(int64_t share) const { return share * blocks() / shares(); }
    int64_t size_BC() const { return length * rows() * 2; }
    float scale() const { return halve ? 0.5f : 1.0f; }
};

// A of one direction as vectors: for each block, rows() of A * log2(e), zero where padded (a state that stays 0), and
// then the largest |delta| for which no exponent of the block leaves the range of exp2_within.
Floats arrange_A(const Scan& scan, const Direction& d) {
    const int64_t size = scan.rows() + 1;
    Floats arranged(scan.blocks() * size * W);
    std::fill_n(arranged.get(), scan.blocks() * size * W, 0.0f);
    for (int64_t c = 0; c < scan.channels; ++c) {
        float* block = arranged.get() + c / W * size * W + c % W;
        float largest = 0.0f;
        for (int64_t n = 0; n < scan.num_states; ++n) {
            block[n * W] = d.A[c * scan.num_states + n] * kLog2e;
            largest = std::max(largest, std::abs(block[n * W]));
        }
        block[scan.rows() * W] = kExponentLimit / largest;
    }
    return arranged;
}

template <typename T>
RMEETO_INLINE void take_states(const T* from, int64_t stride, int64_t count, float* to) {
    if (std::is_same_v<T, float> && count >= S && stride == 1)
        std::memcpy(to, from, S * sizeof(float));  // at once: the compiler cannot know that they do not overlap
    else if (count >= S && stride == 1)
        for (int s = 0; s < S; ++s) to[s] = to_float(from[s]);
    else
        for (int s = 0; s < S; ++s) to[s] = s < count ? to_float(from[s * stride]) : 0.0f;
}

// B and C of one sample as (L, groups, 2 S): S values of B, then S of C.
template <typename T>
void arrange_BC(const Scan& scan, const Direction& d, int64_t sample, float* to) {
    const T* B = (const T*)d.B + sample * d.B_batch;
    const T* C = (const T*)d.C + sample * d.C_batch;
    for (int64_t t = 0; t < scan.length; ++t, B += d.B_token, C += d.C_token)
        for (int64_t n = 0; n < scan.rows(); n += S, to += 2 * S) {
            take_states(B + n * d.B_state, d.B_state, scan.num_states - n, to);
            take_states(C + n * d.C_state, d.C_state, scan.num_states - n, to + S);
        }
}

// One block of W channels (fewer at the end) of one sample, in one direction; all rows in the order of its scan.
template <typename T>
struct Block {
    const Scan& scan;
    const Direction& d;
    int64_t sample, block, channel;
    int width;
    vf bias, D;
    const vf* A;
    Rows<const T> u, delta, z;
    Rows<const float> BC;

    Block(const Scan& scan, const Direction& d, int64_t sample, int64_t block, const Floats& A, const float* BC)
        : scan(scan), d(d), sample(sample), block(block), channel(block * W),
          width(int(std::min<int64_t>(W, scan.channels - channel))),
          bias(d.bias ? load(d.bias + channel, width) : vf{}), D(d.D ? load(d.D + channel, width) : vf{}),
          A(A.vectors() + block * (scan.rows() + 1)), u(rows((const T*)d.u, d.u_batch, d.u_token)),
          delta(rows((const T*)d.delta, d.delta_batch, d.delta_token)),
          z(rows((const T*)scan.z, scan.z_batch, scan.z_token)), BC(per_token(BC, 2 * scan.rows())) {}

    template <typename U>
    Rows<U> rows(U* base, int64_t batch_stride, int64_t token_stride) const {
        return Rows<U>(base + sample * batch_stride + channel, token_stride, scan.length, d.reverse);
    }
    Rows<T> rows(void* base) const { return rows((T*)base, scan.length * scan.channels, scan.channels); }
    template <typename U>
    Rows<U> per_token(U* base, int64_t stride = 1) const {
        return Rows<U>(base, stride, scan.length, d.reverse);
    }
    int tokens(int64_t begin) const { return int(std::min<int64_t>(kChunk, scan.length - begin)); }
    vf* stored(int64_t chunk) const {
        const int64_t size = (scan.channels + kPadChannels - 1) / kPadChannels * kPadChannels *
                             ((scan.num_states + kPadStates - 1) / kPadStates * kPadStates);
        return (vf*)(d.states + (sample * scan.chunks() + chunk) * size) + block * scan.rows();
    }
};

// What the scan of a chunk reads.
struct Chunk {
    int tokens;
    vf delta[kChunk], input[kChunk], u[kChunk], slope[kChunk];  // delta after softplus and its slope, delta u, u
    bool within;  // whether every exponent is small enough for exp2_within and exp2_scaled

    template <typename T>
    Chunk(const Block<T>& block, int64_t begin, bool with_slope) : tokens(block.tokens(begin)) {
        vf largest = {};
        for (int i = 0; i < tokens; ++i) {
            u[i] = load(block.u.at(begin + i), block.width);
            delta[i] = load(block.delta.at(begin + i), block.width) + block.bias;
            if (with_slope) slope[i] = block.scan.softplus ? sigmoid(delta[i]) : splat(1.0f);
            if (block.scan.softplus) delta[i] = softplus(delta[i]);
            largest = max_keep(magnitude(delta[i]), largest);
            input[i] = delta[i] * u[i];
        }
        within = all_at_most(largest, block.A[block.scan.rows()]);
    }
    // Of a function for each way to take powers of 2, the one for this chunk.
    template <typename F>
    F* choose(F* any, F* within_limits, F* scaled) const {
        return !within ? any : is_scaling_fast() ? scaled : within_limits;
    }
};

enum class Powers { any, within, scaled };

template <Powers Way>
RMEETO_INLINE void exponentials(vf* x) {
    if constexpr (Way == Powers::scaled) {
        exp2_scaled<kTogether>(x);
    } else if constexpr (Way == Powers::within) {
        exp2_within<kTogether>(x);
    } else {
        RMEETO_UNROLL
        for (int j = 0; j < kTogether; ++j) x[j] = exp2(x[j]);
    }
}

// S states through a chunk: h = 2^(delta A) h + (delta u) B, y += C h. Meanwhile rows needed soon come into the cache.
template <Powers Way>
void scan_group(const Chunk& chunk, const vf* A_memory, const float* BC, int64_t stride, vf* h_memory, vf* y_memory,
                const Fetch& fetch) {
    vf A[S], h[S];
    RMEETO_UNROLL
    for (int s = 0; s < S; ++s) A[s] = A_memory[s], h[s] = h_memory[s];
    for (int i = 0; i < chunk.tokens; ++i, BC += stride) {
        fetch(i);
        vf y[2] = {y_memory[i], vf{}};  // two sums, so that additions wait less for each other
        RMEETO_UNROLL
        for (int s = 0; s < S; s += kTogether) {
            vf decay[kTogether];
            RMEETO_UNROLL
            for (int j = 0; j < kTogether; ++j) decay[j] = chunk.delta[i] * A[s + j];
            exponentials<Way>(decay);
            RMEETO_UNROLL
            for (int j = 0; j < kTogether; ++j) h[s + j] = decay[j] * h[s + j] + chunk.input[i] * BC[s + j];
            RMEETO_UNROLL
            for (int j = 0; j < kTogether; ++j) y[j % 2] += h[s + j] * BC[S + s + j];
        }
        y_memory[i] = y[0] + y[1];
    }
    RMEETO_UNROLL
    for (int s = 0; s < S; ++s) h_memory[s] = h[s];
}

// The first of two directions leaves its y in `y_all`; the last one adds its own, gates, and writes the output.
template <typename T>
void forward_block(const Block<T>& block, bool first, bool last, vf* h, vf* y_memory) {
    const Scan& scan = block.scan;
    const Rows<T> out = block.rows(scan.out);
    const Rows<vf> y_all = block.per_token(y_memory);
    std::fill_n(h, scan.rows(), vf{});
    for (int64_t begin = 0; begin < scan.length; begin += kChunk) {
        const Chunk chunk(block, begin, false);
        vf y[kChunk];
        for (int i = 0; i < chunk.tokens; ++i) {
            y[i] = block.D * chunk.u[i];
            if (!first) y[i] += *y_all.at(begin + i);
        }
        if (block.d.states) std::copy_n(h, scan.rows(), block.stored(begin / kChunk));
        for (int64_t g = 0; g < scan.groups(); ++g) {
            const bool early = g == 0 && last;
            const Fetch fetch = early ? Fetch(block.z, out, begin) : Fetch(block.u, block.delta, begin + kChunk);
            const auto run =
                chunk.choose(scan_group<Powers::any>, scan_group<Powers::within>, scan_group<Powers::scaled>);
            run(chunk, block.A + g * S, block.BC.at(begin) + g * 2 * S, block.BC.stride, h + g * S, y, fetch);
        }
        for (int i = 0; i < chunk.tokens; ++i) {
            if (!last) {
                *y_all.at(begin + i) = y[i];
                continue;
            }
            vf gate = splat(scan.scale());
            if (scan.z) {
                const vf z = load(block.z.at(begin + i), block.width);
                gate *= z * sigmoid(z);
            }
            store(out.at(begin + i), y[i] * gate, block.width);
        }
    }
}

template <typename T>
void forward(const Scan& scan) {
    const Floats A[2] = {arrange_A(scan, scan.direction[0]), arrange_A(scan, scan.direction[scan.directions - 1])};
    parallel(scan.batch * scan.shares(), scan.threads, scan.openmp, [&] {
        return [&, h = Floats(scan.rows() * W), y = Floats(scan.length * W),
                BC = Floats(scan.directions * scan.size_BC())](int64_t task) {
            const int64_t sample = task / scan.shares(), share = task % scan.shares();
            for (int64_t k = 0; k < scan.directions; ++k)
                arrange_BC<T>(scan, scan.direction[k], sample, BC.get() + k * scan.size_BC());
            for (int64_t block = scan.first_block(share); block < scan.first_block(share + 1); ++block)
                for (int64_t k = 0; k < scan.directions; ++k)
                    forward_block(
                        Block<T>(scan, scan.direction[k], sample, block, A[k], BC.get() + k * scan.size_BC()), k == 0,
                        k == scan.directions - 1, h.vectors(), y.vectors());
        };
    });
}

// Sums over states, per token: y, and the two that du and ddelta are made of.
struct Sums {
    vf y[kChunk], dh_B[kChunk], dh_h_A[kChunk];
};

// S states backwards through a chunk: recomputes them from the stored state, then runs time the other way. Adds to the
// sums, to dA, and to dB and dC (in the layout of BC; the first block of a task sets them).
template <Powers Way>
void scan_group_backward(const Chunk& chunk, const vf* A_memory, const float* BC, int64_t stride, const vf* h_stored,
                         const vf* dy, vf* carry_memory, vf* dA_memory, float* dBC, bool accumulate, Sums& sums,
                         const Fetch& fetch) {
    vf h[kChunk + 1][S], decays[kChunk][S];
    vf A[S];
    RMEETO_UNROLL
    for (int s = 0; s < S; ++s) A[s] = A_memory[s], h[0][s] = h_stored[s];
    const float* at = BC;
    for (int i = 0; i < chunk.tokens; ++i, at += stride) {
        fetch(i);
        vf y[2] = {sums.y[i], vf{}};
        RMEETO_UNROLL
        for (int s = 0; s < S; s += kTogether) {
            vf decay[kTogether];
            RMEETO_UNROLL
            for (int j = 0; j < kTogether; ++j) decay[j] = chunk.delta[i] * A[s + j];
            exponentials<Way>(decay);
            RMEETO_UNROLL
            for (int j = 0; j < kTogether; ++j) {
                decays[i][s + j] = decay[j];
                h[i + 1][s + j] = decay[j] * h[i][s + j] + chunk.input[i] * at[s + j];
                y[j % 2] += h[i + 1][s + j] * at[S + s + j];
            }
        }
        sums.y[i] = y[0] + y[1];
    }
    vf carry[S], dA[S];  // carry: the gradient that reaches h_t from the tokens after it
    RMEETO_UNROLL
    for (int s = 0; s < S; ++s) carry[s] = carry_memory[s], dA[s] = dA_memory[s];
    for (int i = chunk.tokens - 1; i >= 0; --i) {
        at -= stride;
        vf over_channels[2 * S], dh_B[2] = {sums.dh_B[i], vf{}}, dh_h_A[2] = {sums.dh_h_A[i], vf{}};
        RMEETO_UNROLL
        for (int s = 0; s < S; ++s) {
            const vf dh = dy[i] * at[S + s] + carry[s];
            over_channels[s] = dh * chunk.input[i];
            over_channels[S + s] = dy[i] * h[i + 1][s];
            dh_B[s % 2] += dh * at[s];
            carry[s] = dh * decays[i][s];
            const vf dh_h = carry[s] * h[i][s];
            dA[s] += dh_h * chunk.delta[i];
            dh_h_A[s % 2] += dh_h * A[s];
        }
        sums.dh_B[i] = dh_B[0] + dh_B[1];
        sums.dh_h_A[i] = dh_h_A[0] + dh_h_A[1];
        float* to = dBC + i * stride;
        const vf summed = sum_each(over_channels);
        store(to, accumulate ? load(to) + summed : summed);
    }
    RMEETO_UNROLL
    for (int s = 0; s < S; ++s) carry_memory[s] = carry[s], dA_memory[s] = dA[s];
}

// Scratch of one thread. dy: gradient of y before the gate; y: recomputed; dz: what y is multiplied with to give dz.
struct Backward {
    Floats BC, carry, dy, y, dz;
    explicit Backward(const Scan& scan)
        : BC(scan.directions * scan.size_BC()), carry(scan.rows() * W), dy(scan.length * W), y(scan.length * W),
          dz(scan.length * W) {}
};

// `parts` gets rows() of dA, then dD, then dbias.
template <typename T>
void backward_block(const Block<T>& block, bool accumulate, const Backward& scratch, float* dBC_memory, vf* parts) {
    const Scan& scan = block.scan;
    const Rows<T> du = block.rows(block.d.du), ddelta = block.rows(block.d.ddelta);
    const Rows<vf> y_all = block.per_token(scratch.y.vectors()), dy_all = block.per_token(scratch.dy.vectors());
    const Rows<float> dBC = block.per_token(dBC_memory, 2 * scan.rows());
    vf* carry = scratch.carry.vectors();
    std::fill_n(carry, scan.rows(), vf{});
    std::fill_n(parts, scan.rows(), vf{});
    vf dD = {}, dbias = {};
    for (int64_t begin = (scan.chunks() - 1) * kChunk; begin >= 0; begin -= kChunk) {
        const Chunk chunk(block, begin, true);
        Sums sums = {};
        vf dy[kChunk];
        for (int i = 0; i < chunk.tokens; ++i) dy[i] = *dy_all.at(begin + i);
        if (begin > 0)
            for (int64_t n = 0; n < scan.rows(); ++n) __builtin_prefetch(block.stored(begin / kChunk - 1) + n);
        for (int64_t g = 0; g < scan.groups(); ++g) {
            const Fetch fetch = g == 0 ? Fetch(du, ddelta, begin) : Fetch(block.u, block.delta, begin - kChunk);
            const auto run = chunk.choose(scan_group_backward<Powers::any>, scan_group_backward<Powers::within>,
                                           scan_group_backward<Powers::scaled>);
            run(chunk, block.A + g * S, block.BC.at(begin) + g * 2 * S, block.BC.stride,
                block.stored(begin / kChunk) + g * S, dy, carry + g * S, parts + g * S, dBC.at(begin) + g * 2 * S,
                accumulate, sums, fetch);
        }
        for (int i = 0; i < chunk.tokens; ++i) {
            store(du.at(begin + i), dy[i] * block.D + sums.dh_B[i] * chunk.delta[i], block.width);
            const vf d = (chunk.u[i] * sums.dh_B[i] + kLn2 * sums.dh_h_A[i]) * chunk.slope[i];
            store(ddelta.at(begin + i), d, block.width);
            dD += dy[i] * chunk.u[i];
            dbias += d;
            *y_all.at(begin + i) += sums.y[i] + block.D * chunk.u[i];
        }
    }
    parts[scan.rows()] = dD;
    parts[scan.rows() + 1] = dbias;
}

// Before and after the directions of a block: through the gate, and into dz.
template <typename T>
void gate_backward(const Block<T>& block, const Backward& scratch) {
    const Scan& scan = block.scan;
    const Rows<const T> dout = block.rows((const T*)scan.dout, scan.dout_batch, scan.dout_token);
    const Rows<vf> y = block.per_token(scratch.y.vectors()), dy = block.per_token(scratch.dy.vectors()),
                   dz = block.per_token(scratch.dz.vectors());
    for (int64_t step = 0; step < scan.length; ++step) {
        __builtin_prefetch(dout.at(step + kChunk));
        __builtin_prefetch(block.z.at(step + kChunk));
        *y.at(step) = vf{};
        *dy.at(step) = load(dout.at(step), block.width) * scan.scale();
        if (!scan.z) continue;
        const vf z = load(block.z.at(step), block.width), s = sigmoid(z);
        *dz.at(step) = *dy.at(step) * (s + z * s * (1.0f - s));
        *dy.at(step) *= z * s;
    }
}

template <typename T>
void write_dz(const Block<T>& block, const Backward& scratch) {
    const Rows<T> dz = block.rows(block.scan.dz);
    const Rows<vf> y = block.per_token(scratch.y.vectors()), factor = block.per_token(scratch.dz.vectors());
    for (int64_t step = 0; step < block.scan.length; ++step) {
        __builtin_prefetch(dz.at(step + kChunk), 1);
        store(dz.at(step), *y.at(step) * *factor.at(step), block.width);
    }
}

// dB and dC of a sample: the sum over its shares.
template <typename T>
void reduce_BC(const Scan& scan, const Direction& d, int64_t sample, const float* shares) {
    T* dB = (T*)d.dB + sample * scan.length * scan.num_states;
    T* dC = (T*)d.dC + sample * scan.length * scan.num_states;
    for (int64_t t = 0; t < scan.length; ++t)
        for (int64_t g = 0; g < scan.groups(); ++g) {
            vf sum = {};
            for (int64_t share = 0; share < scan.shares(); ++share)
                sum += load(shares + share * scan.size_BC() + (t * scan.groups() + g) * 2 * S);
            for (int64_t n = g * S; n < std::min((g + 1) * S, scan.num_states); ++n) {
                from_float(dB + t * scan.num_states + n, sum[n - g * S]);
                from_float(dC + t * scan.num_states + n, sum[n - g * S + S]);
            }
        }
}

// dA, dD and dbias of a block of channels: the sum over samples.
void reduce_parameters(const Scan& scan, const Direction& d, int64_t block, const vf* parts) {
    const int64_t size = scan.rows() + 2;
    for (int64_t row = 0; row < size; ++row) {
        vf sum = {};
        for (int64_t sample = 0; sample < scan.batch; ++sample)
            sum += parts[(sample * scan.blocks() + block) * size + row];
        for (int64_t c = block * W; c < std::min((block + 1) * W, scan.channels); ++c) {
            if (row < scan.num_states) d.dA[c * scan.num_states + row] = sum[c % W];
            if (row == scan.rows() && d.dD) d.dD[c] = sum[c % W];
            if (row == scan.rows() + 1 && d.dbias) d.dbias[c] = sum[c % W];
        }
    }
}

template <typename T>
void backward(const Scan& scan) {
    const int64_t tasks = scan.batch * scan.shares(), size_parts = scan.batch * scan.blocks() * (scan.rows() + 2);
    const Floats A[2] = {arrange_A(scan, scan.direction[0]), arrange_A(scan, scan.direction[scan.directions - 1])};
    const Floats dBC(scan.directions * tasks * scan.size_BC()), parts(scan.directions * size_parts * W);
    parallel(tasks, scan.threads, scan.openmp, [&] {
        return [&, scratch = Backward(scan)](int64_t task) {
            const int64_t sample = task / scan.shares(), share = task % scan.shares();
            for (int64_t k = 0; k < scan.directions; ++k)
                arrange_BC<T>(scan, scan.direction[k], sample, scratch.BC.get() + k * scan.size_BC());
            for (int64_t b = scan.first_block(share); b < scan.first_block(share + 1); ++b)
                for (int64_t k = 0; k < scan.directions; ++k) {
                    const Block<T> block(scan, scan.direction[k], sample, b, A[k],
                                         scratch.BC.get() + k * scan.size_BC());
                    if (k == 0) gate_backward(block, scratch);
                    backward_block(block, b > scan.first_block(share), scratch,
                                   dBC.get() + (k * tasks + task) * scan.size_BC(),
                                   parts.vectors() + k * size_parts + (sample * scan.blocks() + b) * (scan.rows() + 2));
                    if (k == scan.directions - 1 && scan.dz) write_dz(block, scratch);
                }
        };
    });
    const int64_t jobs = scan.batch + scan.blocks();
    parallel(scan.directions * jobs, scan.threads, scan.openmp, [&] {
        return [&](int64_t task) {
            const int64_t k = task / jobs, job = task % jobs;
            const Direction& d = scan.direction[k];
            if (job < scan.batch)
                reduce_BC<T>(scan, d, job, dBC.get() + (k * tasks + job * scan.shares()) * scan.size_BC());
            else
                reduce_parameters(scan, d, job - scan.batch, parts.vectors() + k * size_parts);
        };
    });
}

}  // namespace

extern "C" {
void rmeeto_scan_forward_f32(const Scan* scan) { forward<float>(*scan); }
void rmeeto_scan_forward_bf16(const Scan* scan) { forward<bf16>(*scan); }
void rmeeto_scan_backward_f32(const Scan* scan) { backward<float>(*scan); }
void rmeeto_scan_backward_bf16(const Scan* scan) { backward<bf16>(*scan); }
int rmeeto_scan_size() { return sizeof(Scan); }
int rmeeto_scan_chunk() { return kChunk; }
int rmeeto_scan_pad_channels() { return kPadChannels; }
int rmeeto_scan_pad_states() { return kPadStates; }
}
