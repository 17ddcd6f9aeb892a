// Token merging: which tokens go into which (match), and the size-weighted average of them (merge) with its gradient.
//
// L tokens of a sample, one of them set aside (the class token); of the other P = L - 1, the patches, even ones are the
// S sources and odd ones the D destinations. Each source picks the destination of largest cosine similarity, the first
// among equals; the r best sources go. Survivors keep their order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace {

constexpr int kSources = 3;                // scores are computed for so many sources
constexpr int kVectors = W == 16 ? 7 : 3;  // and so many vectors of destinations at a time, all in registers
constexpr int kTile = kVectors * W;
constexpr int kTaskSources = 8 * kSources;
constexpr int kTaskRows = 64;

// As in token_merge/cpp.py, field by field. Strides in elements.
struct Match {
    int64_t openmp, threads, batch, tokens, channels, r;
    const void* metric;
    int64_t metric_batch, metric_token;
    const int64_t* aside;  // (B,), or null: `aside_all` for every sample
    int64_t aside_all;
    int64_t* exact_place;  // (B,), written if not null: the class token goes behind those that really stay before it
    int64_t *keep, *source, *destination;

    int64_t patches() const { return tokens - 1; }
    int64_t sources() const { return tokens / 2; }
    int64_t destinations() const { return (tokens - 1) / 2; }
    int64_t tiles() const { return (destinations() + kTile - 1) / kTile; }
    int64_t rounded_sources() const { return (sources() + kSources - 1) / kSources * kSources; }
    int64_t size_sources() const { return rounded_sources() * channels; }
    int64_t size_destinations() const { return tiles() * kTile * channels; }
    int64_t set_aside(int64_t sample) const { return aside ? aside[sample] : aside_all; }
};

struct Scratch {
    Floats sources, destinations;  // normalised: sources (S, C), destinations (tiles, C, kTile), zeros where padded
    Floats score;                  // (B, S) of the destination picked
    std::vector<int64_t> pick;     // (B, S)
    explicit Scratch(const Match& m)
        : sources(m.batch * m.size_sources()), destinations(m.batch * m.size_destinations()),
          score(m.batch * m.rounded_sources()), pick(m.batch * m.rounded_sources()) {}
};

template <typename T>
RMEETO_INLINE const T* row_of(const Match& m, int64_t sample, int64_t patch) {
    const int64_t token = patch + (patch >= m.set_aside(sample));
    return (const T*)m.metric + sample * m.metric_batch + token * m.metric_token;
}

// 1 / its norm
template <typename T>
RMEETO_INLINE float scale_of(const T* row, int64_t channels) {
    vf squares = {};
    for_blocks(channels, [&](int64_t c, int width) RMEETO_LAMBDA {
        const vf x = load(row + c, width);
        squares += x * x;
    });
    return 1.0f / std::max(std::sqrt(total(squares)), 1e-12f);
}

template <typename T>
void normalise(const Match& m, int64_t sample, const Scratch& scratch) {
    float* sources = scratch.sources.get() + sample * m.size_sources();
    std::fill_n(sources + m.sources() * m.channels, (m.rounded_sources() - m.sources()) * m.channels, 0.0f);
    for (int64_t s = 0; s < m.sources(); ++s) {
        const T* from = row_of<T>(m, sample, 2 * s);
        const float scale = scale_of(from, m.channels);
        float* to = sources + s * m.channels;
        for_blocks(m.channels, [&](int64_t c, int width)
                                   RMEETO_LAMBDA { store(to + c, load(from + c, width) * scale, width); });
    }
    float* tile = scratch.destinations.get() + sample * m.size_destinations();
    for (int64_t first = 0; first < m.tiles() * kTile; first += W) {  // W destinations become the lanes of vectors
        const int real = int(std::max<int64_t>(0, std::min<int64_t>(W, m.destinations() - first)));
        float* to = tile + first / kTile * kTile * m.channels + first % kTile;
        const T* from[W];
        float scale[W];
        for (int i = 0; i < real; ++i) {
            from[i] = row_of<T>(m, sample, 2 * (first + i) + 1);
            scale[i] = scale_of(from[i], m.channels);
        }
        for_blocks(m.channels, [&](int64_t c, int width) RMEETO_LAMBDA {
            vf block[W];
            for (int i = 0; i < W; ++i) block[i] = i < real ? load(from[i] + c, width) * scale[i] : vf{};
            transpose(block);
            for (int i = 0; i < width; ++i) store(to + (c + i) * kTile, block[i]);
        });
    }
}

// The best destination of kSources sources, starting at the first. Each lane keeps its own best until the end.
void pick_destinations(const Match& m, int64_t sample, int64_t first, Scratch& scratch) {
    const float* sources = scratch.sources.get() + sample * m.size_sources() + first * m.channels;
    const float* tile = scratch.destinations.get() + sample * m.size_destinations();
    vf best[kSources];
    vi where[kSources] = {}, lanes;
    for (int lane = 0; lane < W; ++lane) lanes[lane] = lane;
    for (vf& b : best) b = splat(-INFINITY);
    for (int64_t begin = 0; begin < m.destinations(); begin += kTile) {
        vf dot[kSources][kVectors] = {};
        for (int64_t c = 0; c < m.channels; ++c, tile += kTile) {
            RMEETO_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                const vf destination = *(const vf*)(tile + v * W);
                RMEETO_UNROLL
                for (int i = 0; i < kSources; ++i) dot[i][v] += destination * sources[i * m.channels + c];
            }
        }
        for (int v = 0; v < kVectors; ++v) {
            const vi index = lanes + int32_t(begin + v * W), real = index < int32_t(m.destinations());
            RMEETO_UNROLL
            for (int i = 0; i < kSources; ++i) {
                const vi better = real & (dot[i][v] > best[i]);
                best[i] = better ? dot[i][v] : best[i];
                where[i] = better ? index : where[i];
            }
        }
    }
    for (int i = 0; i < kSources; ++i) {
        int lane = 0;
        for (int other = 1; other < W; ++other)
            if (best[i][other] > best[i][lane] || (best[i][other] == best[i][lane] && where[i][other] < where[i][lane]))
                lane = other;
        scratch.score.get()[sample * m.rounded_sources() + first + i] = best[i][lane];
        scratch.pick[sample * m.rounded_sources() + first + i] = where[i][lane];
    }
}

// keep, source and destination of a sample, from the scores.
void make_plan(const Match& m, int64_t sample, const Scratch& scratch) {
    const float* score = scratch.score.get() + sample * m.rounded_sources();
    const int64_t* pick = scratch.pick.data() + sample * m.rounded_sources();
    std::vector<int64_t> order(m.sources()), rank(m.patches());
    for (int64_t s = 0; s < m.sources(); ++s) order[s] = s;
    std::partial_sort(order.begin(), order.begin() + m.r, order.end(), [&](int64_t a, int64_t b) {
        return score[a] > score[b] || (score[a] == score[b] && a < b);
    });
    for (int64_t k = 0; k < m.r; ++k) rank[2 * order[k]] = -1;  // goes

    const int64_t aside = m.set_aside(sample);
    int64_t place = aside * (m.tokens - m.r) / m.tokens;
    if (m.exact_place) {
        place = aside - std::count(rank.begin(), rank.begin() + aside, -1);
        m.exact_place[sample] = place;
    }
    int64_t* keep = m.keep + sample * (m.tokens - m.r);
    int64_t kept = 0;
    for (int64_t patch = 0; patch < m.patches(); ++patch) {
        const int64_t after = kept + (kept >= place);
        const bool stays = rank[patch] == 0;
        rank[patch] = after;
        if (!stays) continue;
        keep[after] = patch + (patch >= aside);
        ++kept;
    }
    keep[place] = aside;
    for (int64_t k = 0; k < m.r; ++k) {
        const int64_t patch = 2 * order[k];
        m.source[sample * m.r + k] = patch + (patch >= aside);
        m.destination[sample * m.r + k] = rank[2 * pick[order[k]] + 1];
    }
}

template <typename T>
void match(const Match& m) {
    Scratch scratch(m);
    const int64_t pieces = (m.sources() + kTaskSources - 1) / kTaskSources;
    parallel(m.batch, m.threads, m.openmp,
             [&] { return [&](int64_t sample) { normalise<T>(m, sample, scratch); }; });
    parallel(m.batch * pieces, m.threads, m.openmp, [&] {
        return [&](int64_t task) {
            const int64_t begin = task % pieces * kTaskSources;
            for (int64_t s = begin; s < std::min(begin + kTaskSources, m.sources()); s += kSources)
                pick_destinations(m, task / pieces, s, scratch);
        };
    });
    parallel(m.batch, m.threads, m.openmp, [&] { return [&](int64_t sample) { make_plan(m, sample, scratch); }; });
}

// Rows of x = hidden + residual, and their sizes, before and after a merge.
struct Merge {
    int64_t openmp, threads, batch, tokens, channels, r;
    const void* hidden;
    int64_t hidden_batch, hidden_token;
    const float* residual;  // or null
    int64_t residual_batch, residual_token;
    const float* size;  // (B, L), or null: all 1
    const int64_t *keep, *source, *destination;
    void* merged;     // fp32 with a residual, else of hidden's type
    float* new_size;  // (B, L - r); read by the backward pass
    const void* dmerged;  // contiguous, of merged's type
    void* dhidden;
    float* dresidual;

    int64_t kept() const { return tokens - r; }
    float size_of(int64_t sample, int64_t token) const { return size ? size[sample * tokens + token] : 1.0f; }
};

template <typename H>
RMEETO_INLINE vf load_token(const Merge& m, int64_t sample, int64_t token, int64_t c, int width) {
    vf x = load((const H*)m.hidden + sample * m.hidden_batch + token * m.hidden_token + c, width);
    if (m.residual) x += load(m.residual + sample * m.residual_batch + token * m.residual_token + c, width);
    return x;
}

// One token after the merge. `first` is the first source that goes into it (-1: none), `next` leads to the others.
template <typename H, typename O>
void merge_row(const Merge& m, int64_t sample, int64_t row, int64_t first, const int64_t* next) {
    const int64_t token = m.keep[sample * m.kept() + row];
    const int64_t* source = m.source + sample * m.r;
    const float own = m.size_of(sample, token);
    float size = own;
    for (int64_t k = first; k >= 0; k = next[k]) size += m.size_of(sample, source[k]);
    m.new_size[sample * m.kept() + row] = size;
    O* to = (O*)m.merged + (sample * m.kept() + row) * m.channels;
    for_blocks(m.channels, [&](int64_t c, int width) RMEETO_LAMBDA {
        vf x = load_token<H>(m, sample, token, c, width);
        if (first >= 0) {
            x *= own;
            for (int64_t k = first; k >= 0; k = next[k])
                x += load_token<H>(m, sample, source[k], c, width) * m.size_of(sample, source[k]);
            x /= size;
        }
        store(to + c, x, width);
    });
}

template <typename H, typename O>
void merge(const Merge& m) {
    const int64_t pieces = (m.kept() + kTaskRows - 1) / kTaskRows;
    parallel(m.batch * pieces, m.threads, m.openmp, [&] {
        return [&, first = std::vector<int64_t>(m.kept()), next = std::vector<int64_t>(m.r)](int64_t task) mutable {
            const int64_t sample = task / pieces, begin = task % pieces * kTaskRows;
            std::fill(first.begin(), first.end(), -1);
            for (int64_t k = m.r - 1; k >= 0; --k) {
                int64_t& head = first[m.destination[sample * m.r + k]];
                next[k] = head;
                head = k;
            }
            for (int64_t row = begin; row < std::min(begin + kTaskRows, m.kept()); ++row)
                merge_row<H, O>(m, sample, row, first[row], next.data());
        };
    });
}

// The gradient of a token is that of the token that it went into, times its share of the size.
template <typename H, typename O>
void merge_backward(const Merge& m) {
    const int64_t pieces = (m.tokens + kTaskRows - 1) / kTaskRows;
    parallel(m.batch * pieces, m.threads, m.openmp, [&] {
        return [&, target = std::vector<int64_t>(m.tokens)](int64_t task) mutable {
            const int64_t sample = task / pieces, begin = task % pieces * kTaskRows;
            for (int64_t row = 0; row < m.kept(); ++row) target[m.keep[sample * m.kept() + row]] = row;
            for (int64_t k = 0; k < m.r; ++k) target[m.source[sample * m.r + k]] = m.destination[sample * m.r + k];
            for (int64_t token = begin; token < std::min(begin + kTaskRows, m.tokens); ++token) {
                const int64_t row = sample * m.kept() + target[token], at = (sample * m.tokens + token) * m.channels;
                const float share = m.size_of(sample, token) / m.new_size[row];
                const O* from = (const O*)m.dmerged + row * m.channels;
                for_blocks(m.channels, [&](int64_t c, int width) RMEETO_LAMBDA {
                    const vf d = load(from + c, width) * share;
                    store((H*)m.dhidden + at + c, d, width);
                    if (m.dresidual) store(m.dresidual + at + c, d, width);
                });
            }
        };
    });
}

}  // namespace

// The suffix names the types of hidden and merged.
extern "C" {
void rmeeto_match_f32(const Match* m) { match<float>(*m); }
void rmeeto_match_bf16(const Match* m) { match<bf16>(*m); }
void rmeeto_merge_forward_f32_f32(const Merge* m) { merge<float, float>(*m); }
void rmeeto_merge_forward_bf16_f32(const Merge* m) { merge<bf16, float>(*m); }
void rmeeto_merge_forward_bf16_bf16(const Merge* m) { merge<bf16, bf16>(*m); }
void rmeeto_merge_backward_f32_f32(const Merge* m) { merge_backward<float, float>(*m); }
void rmeeto_merge_backward_bf16_f32(const Merge* m) { merge_backward<bf16, float>(*m); }
void rmeeto_merge_backward_bf16_bf16(const Merge* m) { merge_backward<bf16, bf16>(*m); }
int rmeeto_match_size() { return sizeof(Match); }
int rmeeto_merge_size() { return sizeof(Merge); }
}
