// This library's operators for torch without Python: the kernels of rmeeto/ops/csrc behind torch's stable C++ interface.
//
// A program loads the library (dlopen), then a package of `rmeeto.export.to_package`, which holds the same operators.
// Schemas as in rmeeto/ops; forward passes in fp32 alone, which is what packages are written in.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "memory.h"
#include "parallel.h"
#include "simd.h"

// Each kernel in a namespace of its own, because they give the same names to different things.
namespace scan_kernel {
#include "scan.cpp"
}
namespace conv_kernel {
#include "conv.cpp"
}
namespace norm_kernel {
#include "norm.cpp"
}
namespace merge_kernel {
#include "merge.cpp"
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// The thread pool that torch runs on, as far as this process has it.
template <typename Task>
Task task_on_threads() {
    static const auto openmp = int64_t(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    Task task{};
    task.openmp = openmp;
    task.threads = torch::stable::get_num_threads();
    return task;
}

const Tensor& checked(const Tensor& x, ScalarType type = ScalarType::Float) {
    STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == type, "rmeeto: expected float32 tensors (positions int64) on the CPU");
    return x;
}

// The tensor, or a copy, with the channels of a token side by side.
Tensor rows(const Tensor& x) { return checked(x).stride(x.dim() - 1) == 1 ? x : torch::stable::contiguous(x); }
Tensor whole(const Tensor& x, ScalarType type = ScalarType::Float) { return torch::stable::contiguous(checked(x, type)); }
Optional whole(const Optional& x) { return x ? Optional(whole(*x)) : x; }

float* floats(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }
float* floats(const Optional& x) { return x ? floats(*x) : nullptr; }
int64_t* integers(const Tensor& x) { return static_cast<int64_t*>(x.data_ptr()); }

Tensor empty(const std::vector<int64_t>& size, ScalarType type = ScalarType::Float) {
    return torch::stable::empty(size, type);
}
std::vector<int64_t> size_of(const Tensor& x) {
    std::vector<int64_t> size;
    for (int64_t i = 0; i < x.dim(); ++i) size.push_back(x.size(i));
    return size;
}

std::tuple<Tensor, Tensor> scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Optional D, Optional bias,
                                Optional dt_weight, Optional u2, Optional delta2, Optional A2, Optional B2, Optional C2,
                                Optional D2, Optional bias2, Optional dt_weight2, Optional z, bool softplus,
                                bool reverse, bool average, bool keep) {
    STD_TORCH_CHECK(!keep && !dt_weight && !dt_weight2, "rmeeto::scan: this library has forward passes alone");
    std::vector<Tensor> held;  // until the kernel returns
    const auto hold = [&](const Tensor& x) -> const Tensor& { return held.emplace_back(x); };
    held.reserve(16);
    auto task = task_on_threads<scan_kernel::Scan>();
    const auto fill = [&](int k, const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                          const Optional& D, const Optional& bias) {
        auto& to = task.direction[k];
        const Tensor &x = hold(rows(u)), &step = hold(rows(delta));
        to.u = x.data_ptr(), to.u_batch = x.stride(0), to.u_token = x.stride(1);
        to.delta = step.data_ptr(), to.delta_batch = step.stride(0), to.delta_token = step.stride(1);
        to.A = floats(hold(whole(A)));
        to.B = checked(B).data_ptr(), to.B_batch = B.stride(0), to.B_token = B.stride(1), to.B_state = B.stride(2);
        to.C = checked(C).data_ptr(), to.C_batch = C.stride(0), to.C_token = C.stride(1), to.C_state = C.stride(2);
        if (D) to.D = floats(hold(whole(*D)));
        if (bias) to.bias = floats(hold(whole(*bias)));
        to.reverse = reverse || k == 1;
    };
    task.directions = u2 ? 2 : 1;
    task.batch = u.size(0), task.length = u.size(1), task.channels = u.size(2), task.num_states = A.size(1);
    task.softplus = softplus, task.halve = average;
    fill(0, u, delta, A, B, C, D, bias);
    if (u2) fill(1, *u2, *delta2, *A2, *B2, *C2, D2, bias2);
    if (z) {
        const Tensor& gate = hold(rows(*z));
        task.z = gate.data_ptr(), task.z_batch = gate.stride(0), task.z_token = gate.stride(1);
    }
    Tensor out = empty(size_of(u));
    task.out = out.data_ptr();
    scan_kernel::rmeeto_scan_forward_f32(&task);
    return {out, empty({0})};
}

std::tuple<Tensor, Tensor> conv1d(Tensor x, Tensor weight, Tensor bias, Tensor weight_b, Tensor bias_b) {
    x = rows(x);
    weight = whole(weight), bias = whole(bias), weight_b = whole(weight_b), bias_b = whole(bias_b);
    Tensor y = empty(size_of(x)), y_b = empty(size_of(x));
    auto task = task_on_threads<conv_kernel::Conv>();
    task.batch = x.size(0), task.length = x.size(1), task.channels = x.size(2), task.kernel = weight.size(2);
    task.x = x.data_ptr(), task.x_batch = x.stride(0), task.x_token = x.stride(1);
    task.weight[0] = floats(weight), task.weight[1] = floats(weight_b);
    task.bias[0] = floats(bias), task.bias[1] = floats(bias_b);
    task.y[0] = y.data_ptr(), task.y[1] = y_b.data_ptr();
    conv_kernel::rmeeto_conv_forward_f32(&task);
    return {y, y_b};
}

std::tuple<Tensor, Tensor> add_rms_norm(Tensor hidden, Optional residual, Tensor weight, double eps) {
    hidden = whole(hidden), residual = whole(residual), weight = whole(weight);
    Tensor normed = empty(size_of(hidden)), total = empty(size_of(hidden));
    auto task = task_on_threads<norm_kernel::Norm>();
    task.channels = hidden.size(hidden.dim() - 1), task.rows = hidden.numel() / task.channels;
    task.hidden = hidden.data_ptr(), task.residual = floats(residual), task.weight = floats(weight);
    task.eps = eps, task.normed = normed.data_ptr(), task.sum = floats(total);
    norm_kernel::rmeeto_norm_forward_f32_f32(&task);
    return {normed, total};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> match_tokens(Tensor metric, int64_t r, Optional class_index, int64_t index,
                                                        bool exact) {
    metric = rows(metric);
    if (class_index) class_index = whole(*class_index, ScalarType::Long);
    const int64_t batch = metric.size(0), tokens = metric.size(1);
    Tensor keep = empty({batch, tokens - r}, ScalarType::Long), source = empty({batch, r}, ScalarType::Long),
           destination = empty({batch, r}, ScalarType::Long), place = empty({exact ? batch : 0}, ScalarType::Long);
    auto task = task_on_threads<merge_kernel::Match>();
    task.batch = batch, task.tokens = tokens, task.channels = metric.size(2), task.r = r;
    task.metric = metric.data_ptr(), task.metric_batch = metric.stride(0), task.metric_token = metric.stride(1);
    task.aside = class_index ? integers(*class_index) : nullptr, task.aside_all = index;
    task.exact_place = exact ? integers(place) : nullptr;
    task.keep = integers(keep), task.source = integers(source), task.destination = integers(destination);
    merge_kernel::rmeeto_match_f32(&task);
    return {keep, source, destination, place};
}

std::tuple<Tensor, Tensor> merge_tokens(Tensor hidden, Optional residual, Optional size, Tensor keep, Tensor source,
                                        Tensor destination) {
    hidden = rows(hidden), size = whole(size);
    if (residual) residual = rows(*residual);
    keep = whole(keep, ScalarType::Long), source = whole(source, ScalarType::Long);
    destination = whole(destination, ScalarType::Long);
    Tensor merged = empty({keep.size(0), keep.size(1), hidden.size(2)}), new_size = empty({keep.size(0), keep.size(1), 1});
    auto task = task_on_threads<merge_kernel::Merge>();
    task.batch = hidden.size(0), task.tokens = hidden.size(1), task.channels = hidden.size(2), task.r = source.size(1);
    task.hidden = hidden.data_ptr(), task.hidden_batch = hidden.stride(0), task.hidden_token = hidden.stride(1);
    if (residual) {
        task.residual = floats(*residual);
        task.residual_batch = residual->stride(0), task.residual_token = residual->stride(1);
    }
    task.size = floats(size), task.merged = merged.data_ptr(), task.new_size = floats(new_size);
    task.keep = integers(keep), task.source = integers(source), task.destination = integers(destination);
    merge_kernel::rmeeto_merge_forward_f32_f32(&task);
    return {merged, new_size};
}

}  // namespace

// RMEETO_*: the schemas that Python registers, handed over by rmeeto/export/package.py when this is compiled.
STABLE_TORCH_LIBRARY(rmeeto, library) {
    library.def(RMEETO_SCAN);
    library.def(RMEETO_CONV1D);
    library.def(RMEETO_ADD_RMS_NORM);
    library.def(RMEETO_MATCH_TOKENS);
    library.def(RMEETO_MERGE_TOKENS);
}

STABLE_TORCH_LIBRARY_IMPL(rmeeto, CPU, library) {
    library.impl("scan", TORCH_BOX(&scan));
    library.impl("conv1d", TORCH_BOX(&conv1d));
    library.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
    library.impl("match_tokens", TORCH_BOX(&match_tokens));
    library.impl("merge_tokens", TORCH_BOX(&merge_tokens));
}
