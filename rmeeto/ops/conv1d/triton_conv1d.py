# mypy: disallow-untyped-defs=False, check-untyped-defs=False, disable-error-code=assignment
"""Both directions' convolution on Triton kernels, registered with torch.library as ``rmeeto::triton_conv1d``.

Shapes: x (B, L, D), weight (D, 1, K), bias (D,).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmeeto.ops.conv1d import eager
from rmeeto.ops.library import operator
from rmeeto.ops.triton_math import sigmoid
from rmeeto.ops.triton_support import FUSED, check_batch, contiguous_rows, dispatch_keys, num_sms, on_device

FORWARD_TILE = {"T": 16, "W": 128, "num_warps": 4}  # tokens x channels
# A backward warp walks along the tokens with two channels a thread, and loads T tokens ahead.
BACKWARD_TILE = {"T": 8, "W": 64, "num_warps": 1}


@triton.jit
def load_taps(weight, bias, channels, inside, K: tl.constexpr):
    """The K taps and the bias of the channels, one vector each."""
    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(weight + channels * K + k, mask=inside, other=0.0).to(tl.float32),)
    return taps, tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["length", "chunk"])
def conv_fwd_kernel(
    x, weight, bias, weight_b, bias_b, y, y_b,
    length, chunk, x_batch, x_row,
    CHANNELS: tl.constexpr, K: tl.constexpr, T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Both directions of a chunk of tokens. Grid: tiles of channels, B, chunks.

    The 2 K - 1 shifted loads of x overlap: memory sees it once, the L1 cache serves the rest.
    """
    channels = tl.program_id(0) * W + tl.arange(0, W)
    batch, start = tl.program_id(1).to(tl.int64), tl.program_id(2) * chunk
    stop = tl.minimum(start + chunk, length)
    inside = channels < CHANNELS
    taps, shift = load_taps(weight, bias, channels, inside, K)
    taps_b, shift_b = load_taps(weight_b, bias_b, channels, inside, K)
    x += batch * x_batch
    y += batch * length * CHANNELS
    y_b += batch * length * CHANNELS
    for position in tl.range(start, stop, T):
        tokens = position + tl.arange(0, T)
        value = tl.zeros((T, W), tl.float32) + shift[None, :]
        value_b = tl.zeros((T, W), tl.float32) + shift_b[None, :]
        for k in tl.static_range(2 * K - 1):
            seen = tokens + (k - (K - 1))
            mask = ((seen >= 0) & (seen < length))[:, None] & inside[None, :]
            here = tl.load(x + seen[:, None] * x_row + channels[None, :], mask=mask, other=0.0).to(tl.float32)
            if k < K:
                value += here * taps[k][None, :]
            if k >= K - 1:
                value_b += here * taps_b[2 * K - 2 - k][None, :]
        place = tokens[:, None] * CHANNELS + channels[None, :]
        mask = (tokens < stop)[:, None] & inside[None, :]
        tl.store(y + place, value * sigmoid(value), mask=mask)
        tl.store(y_b + place, value_b * sigmoid(value_b), mask=mask)


@triton.jit
def silu_slope(x):
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def load_row(pointer, row, token, length, channels, CHANNELS: tl.constexpr):
    end = tl.where((token >= 0) & (token < length), CHANNELS, 0)
    return tl.load(pointer + token * row + channels, mask=channels < end, other=0.0)


@triton.jit(do_not_specialize=["length", "chunk"])
def conv_bwd_kernel(
    x, weight, bias, weight_b, bias_b, dy, dy_b, dx, dparameters,
    length, chunk, x_batch, x_row, dy_batch, dy_row, dx_batch, dx_row,
    CHANNELS: tl.constexpr, K: tl.constexpr, T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk of tokens. Grid: tiles of channels, B, chunks.

    At token t: x of the last K tokens gives the forward direction's gradient g at t and the backward direction's at
    t - K + 1; the last K of both give dx at t - K + 1. A chunk begins K - 1 tokens early and ends K - 1 late.
    Writes dx (B, L, D) and dparameters (B, chunks, 2 (K + 1) D) fp32: both directions' taps (2, D, K), then the biases.
    """
    channels = tl.program_id(0) * W + tl.arange(0, W)
    batch, c = tl.program_id(1).to(tl.int64), tl.program_id(2)
    inside = channels < CHANNELS
    start, stop = c * chunk, tl.minimum(c * chunk + chunk, length)
    zero = tl.zeros((W,), tl.float32)
    taps, shift = load_taps(weight, bias, channels, inside, K)
    taps_b, shift_b = load_taps(weight_b, bias_b, channels, inside, K)
    xs = taps
    for _ in tl.static_range(K):
        xs = xs[1:] + (zero,)
    gs, gs_b, dtaps, dtaps_b = xs, xs, xs, xs
    dshift, dshift_b = zero, zero

    x += batch * x_batch
    dy += batch * dy_batch
    dy_b += batch * dy_batch
    dx += batch * dx_batch
    for position in tl.range(start - (K - 1), stop + K - 1, T):
        x_rows, dy_rows, dy_rows_b = (), (), ()
        for t in tl.static_range(T):  # all loads first: none waits for the arithmetic of a token before it
            at = position + t
            x_rows = x_rows + (load_row(x, x_row, at, length, channels, CHANNELS),)
            dy_rows = dy_rows + (load_row(dy, dy_row, at, length, channels, CHANNELS),)
            at -= K - 1
            dy_rows_b = dy_rows_b + (load_row(dy_b, dy_row, at, length, channels, CHANNELS),)
        for t in tl.static_range(T):
            xs = xs[1:] + (x_rows[t].to(tl.float32),)
            value, value_b = shift, shift_b
            for k in tl.static_range(K):
                value += taps[k] * xs[k]
                value_b += taps_b[K - 1 - k] * xs[k]
            gs = gs[1:] + (dy_rows[t].to(tl.float32) * silu_slope(value),)
            gs_b = gs_b[1:] + (dy_rows_b[t].to(tl.float32) * silu_slope(value_b),)
            at = position + t
            own = tl.where((at >= start) & (at < stop), gs[K - 1], 0.0)
            at -= K - 1
            mine = (at >= start) & (at < stop)
            own_b = tl.where(mine, gs_b[K - 1], 0.0)
            dshift += own
            dshift_b += own_b
            sums, sums_b, gradient = (), (), zero
            for k in tl.static_range(K):
                sums = sums + (dtaps[k] + own * xs[k],)
                sums_b = sums_b + (dtaps_b[k] + own_b * xs[K - 1 - k],)
                gradient += taps[k] * gs[K - 1 - k] + taps_b[k] * gs_b[k]
            dtaps, dtaps_b = sums, sums_b
            end = tl.where(mine, CHANNELS, 0)
            tl.store(dx + at * dx_row + channels, gradient, mask=channels < end)

    own = dparameters + (batch * tl.num_programs(2) + c) * (2 * (K + 1) * CHANNELS)
    for k in tl.static_range(K):
        tl.store(own + channels * K + k, dtaps[k], mask=inside)
        tl.store(own + (CHANNELS + channels) * K + k, dtaps_b[k], mask=inside)
    own += 2 * K * CHANNELS
    tl.store(own + channels, dshift, mask=inside)
    tl.store(own + CHANNELS + channels, dshift_b, mask=inside)


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Same function as `naive_bidirectional_conv1d`; float64 and empty tensors go to the eager path."""
    if x.dtype == torch.float64 or x.numel() == 0:
        return eager.eager_bidirectional_conv1d(x, weight, bias, weight_b, bias_b)
    return conv(x, weight, bias, weight_b, bias_b)


def _forward(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    check_batch(x)
    (x,) = contiguous_rows(x)
    batch, length, channels = x.shape
    y, y_b = _forward_fake(x)
    tiles, rows = -(-channels // FORWARD_TILE["W"]), FORWARD_TILE["T"]
    chunks, chunk = _chunks(length, rows, tiles * batch * FORWARD_TILE["num_warps"], x.device)
    with on_device(x):
        conv_fwd_kernel[(tiles, batch, chunks)](
            x, *(p.contiguous() for p in parameters), y, y_b, length, chunk, x.stride(0), x.stride(1),
            CHANNELS=channels, K=parameters[0].shape[-1], **FORWARD_TILE, **FUSED,
        )  # fmt: skip
    return y, y_b


def _chunks(length: int, least: int, warps: int, device: torch.device) -> tuple[int, int]:
    """How many chunks the tokens are cut into, and their length: ``least`` or more, for 16 warps a multiprocessor."""
    chunks = max(1, min(-(-16 * num_sms(device) // warps), length // least))
    chunk = -(-length // (chunks * least)) * least
    return -(-length // chunk), chunk


def backward(
    dy: Tensor, dy_b: Tensor, x: Tensor, *parameters: Tensor, dx: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of x, in ``dx`` if that is given, and of the parameters, see `conv_bwd_kernel` and `gradients`."""
    (x,) = contiguous_rows(x)
    dy, dy_b = contiguous_rows(dy, dy_b)
    batch, length, channels = x.shape
    made, dparameters = _backward_fake(dy, dy_b, x, *parameters)
    dx = made if dx is None else dx
    del made
    tiles = -(-channels // BACKWARD_TILE["W"])
    chunks, chunk = _chunks(length, 32, tiles * batch, x.device)
    partial = dparameters.new_empty((batch * chunks, *dparameters.shape))
    with on_device(x):
        conv_bwd_kernel[(tiles, batch, chunks)](
            x, *(p.contiguous() for p in parameters), dy, dy_b, dx, partial,
            length, chunk, *x.stride()[:2], *dy.stride()[:2], *dx.stride()[:2],
            CHANNELS=channels, K=parameters[0].shape[-1], **BACKWARD_TILE, **FUSED,
        )  # fmt: skip
    torch.sum(partial, 0, out=dparameters)
    return dx, dparameters


def _forward_fake(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _backward_fake(dy: Tensor, dy_b: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    size = 2 * (parameters[0].shape[-1] + 1) * x.shape[2]
    return x.new_empty(x.shape), x.new_empty(size, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor, dy_b: Tensor) -> tuple:
    x, *parameters = ctx.saved_tensors
    dx, dparameters = _conv_backward(dy, dy_b, x, *parameters)
    return dx, *(gradient.to(p.dtype) for gradient, p in zip(gradients(dparameters, parameters[0]), parameters))


def gradients(dparameters: Tensor, weight: Tensor) -> list[Tensor]:
    """Those of weight, bias, weight_b, bias_b, as views that a parameter may keep."""
    taps, biases = dparameters.split([2 * weight.numel(), 2 * weight.shape[0]])
    return [g for pair in zip(taps.view(2, *weight.shape), biases.view(2, -1)) for g in pair]


_PARAMETERS = "Tensor x, Tensor weight, Tensor bias, Tensor weight_b, Tensor bias_b"
conv = operator(
    "triton_conv1d",
    f"({_PARAMETERS}) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _setup_context,
    _backward,
    dispatch_keys(),
)
_conv_backward = operator(
    "triton_conv1d_backward",
    f"(Tensor dy, Tensor dy_b, {_PARAMETERS}) -> (Tensor, Tensor)",
    backward,
    _backward_fake,
    keys=dispatch_keys(),
)
