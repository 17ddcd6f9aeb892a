// Scratch, and walks over rows of tensors.
#pragma once

#include <cstdint>
#include <memory>

#include "simd.h"

namespace {

// Aligned, uninitialised scratch.
class Floats {
   public:
    explicit Floats(int64_t count) : memory_(new float[count + 16]) {}
    float* get() const { return (float*)((uintptr_t(memory_.get()) + 63) / 64 * 64); }
    vf* vectors() const { return (vf*)get(); }

   private:
    std::unique_ptr<float[]> memory_;
};

// The rows of a tensor in the order of the scan.
template <typename T>
struct Rows {
    T* first;
    int64_t stride;

    Rows(T* base, int64_t stride, int64_t length, bool reverse)
        : first(reverse ? base + (length - 1) * stride : base), stride(reverse ? -stride : stride) {}
    T* at(int64_t step) const { return first + step * stride; }
};

// Two rows a step brought into the cache while something else is computed. Harmless where there are no such rows.
struct Fetch {
    const char *a, *b;
    int64_t a_stride, b_stride;

    template <typename T, typename U>
    Fetch(const Rows<T>& a, const Rows<U>& b, int64_t step)
        : a((const char*)a.at(step)), b((const char*)b.at(step)), a_stride(a.stride * sizeof(T)),
          b_stride(b.stride * sizeof(U)) {}
    RMEETO_INLINE void operator()(int i) const {
        __builtin_prefetch(a + i * a_stride);
        __builtin_prefetch(b + i * b_stride);
    }
};

}  // namespace
