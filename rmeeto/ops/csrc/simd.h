// One vector type for every machine: W floats in a register, written with the vector extensions that GCC and clang
// share. The instruction set is the one that the compiler's flags name, see rmeeto/ops/build.py.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#define RMEETO_INLINE inline __attribute__((always_inline))
#define RMEETO_LAMBDA __attribute__((always_inline))
#if defined(__clang__)
#define RMEETO_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RMEETO_UNROLL _Pragma("GCC unroll 32")
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef float vf_unaligned __attribute__((vector_size(4 * W), aligned(4)));

struct bf16 {
    uint16_t bits;
};

RMEETO_INLINE float to_float(float x) { return x; }
RMEETO_INLINE float to_float(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
RMEETO_INLINE void from_float(float* to, float x) { *to = x; }
RMEETO_INLINE void from_float(bf16* to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    to->bits = x == x ? uint16_t(rounded) : uint16_t(0x7FC0);
}

RMEETO_INLINE vf splat(float x) { return vf{} + x; }

RMEETO_INLINE vf widen(vh bits) { return (vf)(__builtin_convertvector(bits, vu) << 16); }
RMEETO_INLINE vh narrow(vf x) {
    const vu bits = (vu)x;
    const vu rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector((vu)(x == x ? (vi)rounded : vi{} + 0x7FC0), vh);
}

RMEETO_INLINE vf load(const float* from) { return *(const vf_unaligned*)from; }
RMEETO_INLINE void store(float* to, vf x) { *(vf_unaligned*)to = x; }
RMEETO_INLINE vf load(const bf16* from) {
    vh bits;
    std::memcpy(&bits, from, sizeof(bits));
    return widen(bits);
}
RMEETO_INLINE void store(bf16* to, vf x) {
    const vh bits = narrow(x);
    std::memcpy(to, &bits, sizeof(bits));
}

// The last channels of a row when their number is no multiple of W: lanes beyond `count` read 0 and are not written.
template <typename T>
RMEETO_INLINE vf load(const T* from, int count) {
    if (__builtin_expect(count >= W, 1)) return load(from);
    alignas(4 * W) T row[W] = {};
    std::memcpy(row, from, count * sizeof(T));
    return load(row);
}
template <typename T>
RMEETO_INLINE void store(T* to, vf x, int count) {
    if (__builtin_expect(count >= W, 1)) return store(to, x);
    alignas(4 * W) T row[W];
    store(row, x);
    std::memcpy(to, row, count * sizeof(T));
}

// Hides how x came about, so that the compiler does not fuse a product into every sum that x is part of.
RMEETO_INLINE void opaque(vf& x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#else
    (void)x;
#endif
}

// Both give b where either is NaN.
RMEETO_INLINE vf max_keep(vf a, vf b) { return a > b ? a : b; }
RMEETO_INLINE vf min_keep(vf a, vf b) { return a < b ? a : b; }

RMEETO_INLINE vf magnitude(vf x) { return (vf)((vi)x & INT32_MAX); }

// Whether a <= b in every lane; false if there is a NaN.
RMEETO_INLINE bool all_at_most(vf a, vf b) {
    const vi at_most = a <= b;
    int32_t all = -1;
    for (int i = 0; i < W; ++i) all &= at_most[i];
    return all;
}

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// p[i] = 2^x[i] for |x| <= 1/2: the polynomial of least maximum relative error with 2^0 = 1 exactly. Several vectors go
// through together, step by step, because one polynomial is a chain of waits.
template <int Count>
RMEETO_INLINE void exp2_fraction(const vf* x, vf* p) {
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) p[i] = x[i] * 0.001326472731307149f + 0.009671512991189957f;
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) p[i] = p[i] * x[i] + 0.05550733581185341f;
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) p[i] = p[i] * x[i] + 0.24022242426872253f;
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) p[i] = p[i] * x[i] + 0.6931470036506653f;
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) p[i] = p[i] * x[i] + 1.0f;
}

// x[i] = 2^x[i] for |x| <= kExponentLimit, relative error below 2e-7. Adding 1.5 * 2^23 leaves round(x) in the low bits
// of the sum.
constexpr float kExponentLimit = 126.0f;
template <int Count>
RMEETO_INLINE void exp2_within(vf* x) {
    vf shifted[Count], p[Count];
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) {
        opaque(x[i]);
        shifted[i] = x[i] + 12582912.0f;
    }
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) x[i] -= shifted[i] - 12582912.0f;
    exp2_fraction<Count>(x, p);
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) x[i] = (vf)((vi)p[i] + ((vi)shifted[i] << 23));
}

// The same, to the last bit, by AVX-512's instructions for it: two fewer. They pay where additions and products share
// their ports (Intel: the scan takes 0.9 times as long); on Zen 5 they crowd the multipliers (1.08).
#if defined(__AVX512DQ__)
inline bool is_scaling_fast() {
    static const bool intel = __builtin_cpu_is("intel");
    return intel;
}
template <int Count>
RMEETO_INLINE void exp2_scaled(vf* x) {
    vf fraction[Count], p[Count];
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) fraction[i] = (vf)_mm512_reduce_ps((__m512)x[i], 0);  // x - round(x)
    exp2_fraction<Count>(fraction, p);
    RMEETO_UNROLL
    for (int i = 0; i < Count; ++i) x[i] = (vf)_mm512_scalef_ps((__m512)p[i], (__m512)(x[i] - fraction[i]));
}
#else
inline bool is_scaling_fast() { return false; }
template <int Count>
RMEETO_INLINE void exp2_scaled(vf* x) { exp2_within<Count>(x); }
#endif

// The same for any x, which counts as the nearest limit beyond the limits; NaN stays NaN.
RMEETO_INLINE vf exp2(vf x) {
    x = min_keep(splat(kExponentLimit), max_keep(splat(-kExponentLimit), x));
    exp2_within<1>(&x);
    return x;
}

RMEETO_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp2(x * -kLog2e)); }

// log(1 + exp(x)), relative error below 3e-7 also where it is tiny.
RMEETO_INLINE vf softplus(vf x) {
    const vf e = exp2(-kLog2e * magnitude(x));
    const vf s = e / (2.0f + e);  // log(1 + e) = 2 atanh(s)
    const vf q = s * s;
    vf p = splat(0.2817833423614502f);
    p = p * q + 0.27960601449012756f;
    p = p * q + 0.40024909377098083f;
    p = p * q + 0.6666631698608398f;
    p = p * q + 2.0f;
    return max_keep(vf{}, x) + p * s;
}

template <int Span, int... I>
RMEETO_INLINE vf rotate(vf x, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(x, x, ((I + Span) % W)...);
#else
    return __builtin_shuffle(x, (vi){((I + Span) % W)...});
#endif
}

// Sum over the lanes.
template <int Span = W / 2>
RMEETO_INLINE float total(vf x) {
    x += rotate<Span>(x, std::make_integer_sequence<int, W>{});
    if constexpr (Span > 1) return total<Span / 2>(x);
    return x[0];
}

// Calls f(first channel, channels) for each block of a row; inlined with the constant W for all but the last.
template <typename F>
RMEETO_INLINE void for_blocks(int64_t channels, F f) {
    int64_t c = 0;
    for (; c + W <= channels; c += W) f(c, W);
    if (c < channels) f(c, int(channels - c));
}

template <int Span, int... I>
RMEETO_INLINE vf fold(vf a, vf b, std::integer_sequence<int, I...>) {
    // Lanes in runs of 2 * Span: the first half of a run comes from a, the second from b; both halves of each added up.
#if defined(__clang__) || __GNUC__ >= 12
    const vf low = __builtin_shufflevector(a, b, ((I / Span) % 2 ? W + I - Span : I)...);
    const vf high = __builtin_shufflevector(a, b, ((I / Span) % 2 ? W + I : I + Span)...);
#else
    const vf low = __builtin_shuffle(a, b, (vi){((I / Span) % 2 ? W + I - Span : I)...});
    const vf high = __builtin_shuffle(a, b, (vi){((I / Span) % 2 ? W + I : I + Span)...});
#endif
    return low + high;
}

template <int Span, int... I>
RMEETO_INLINE void swap_blocks(vf& a, vf& b, std::integer_sequence<int, I...>) {
    // Lanes in runs of 2 * Span: the second half of a run of a changes places with the first half of that of b.
#if defined(__clang__) || __GNUC__ >= 12
    const vf low = __builtin_shufflevector(a, b, ((I / Span) % 2 ? W + I - Span : I)...);
    b = __builtin_shufflevector(a, b, ((I / Span) % 2 ? W + I : I + Span)...);
#else
    const vf low = __builtin_shuffle(a, b, (vi){((I / Span) % 2 ? W + I - Span : I)...});
    b = __builtin_shuffle(a, b, (vi){((I / Span) % 2 ? W + I : I + Span)...});
#endif
    a = low;
}

// Lane j of v[i] changes places with lane i of v[j].
template <int Span = W / 2>
RMEETO_INLINE void transpose(vf* v) {
    RMEETO_UNROLL
    for (int i = 0; i < W; ++i)
        if (i / Span % 2 == 0) swap_blocks<Span>(v[i], v[i + Span], std::make_integer_sequence<int, W>{});
    if constexpr (Span > 1) transpose<Span / 2>(v);
}

// Lane i of the result is the sum of the lanes of v[i]: a transpose and W sums in W - 1 additions. Overwrites v.
template <int Span = W / 2>
RMEETO_INLINE vf sum_each(vf* v) {
    RMEETO_UNROLL
    for (int i = 0; i < Span; ++i) v[i] = fold<Span>(v[i], v[i + Span], std::make_integer_sequence<int, W>{});
    if constexpr (Span > 1) return sum_each<Span / 2>(v);
    return v[0];
}

}  // namespace
