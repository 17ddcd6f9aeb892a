# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""Triton kernel of the backward selective scan; tiles, names and loops as in `triton_forward`."""

from __future__ import annotations

import triton
import triton.language as tl

from rmeeto.ops.selective_scan.triton_forward import (
    load_A,
    load_delta,
    load_rows,
    load_states,
    load_vector,
    load_weight,
    order,
    project,
    state_offsets,
)
from rmeeto.ops.triton_math import LOG2E, sigmoid, softplus, take


@triton.jit(do_not_specialize=["length", "span"])
def scan_bwd_kernel(
    u0, delta0, weight0, bias0, A0, B0, C0, D0,
    u1, delta1, weight1, bias1, A1, B1, C1, D1,
    z, dout, ungated, states,
    du, ddelta, dz, dBC, dA, dvectors,
    length, span,
    u_batch, u_row, delta_batch, delta_row, B_batch, B_row, C_batch, C_row, z_batch, z_row, dout_batch, dout_row,
    scale,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    LOG_A: tl.constexpr, T: tl.constexpr, G: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Gradients of one direction of `scan_fwd_kernel`, tile by tile from the last token scanned to the first.

    Each tile's states are scanned again from the one that was stored before it. Grid: spans of ``span`` groups of
    channels, B, directions. Writes
      du, ddelta (directions, B, L, D): the latter before softplus and before the projection;
      dz (B, L, D), by the first direction;
      dBC (directions, spans, B, L, 2, N) fp32, summed over the span's channels;
      dA (directions, B, D, N) and dvectors (directions, B, 2, D) fp32: of A (LOG_A: of log(-A)), D and the
        bias, one for each image.

    h_t = m_t + x_t B_t with m_t = a_t h_{t-1}, x_t = delta_t u_t; g_t = dL/dh_t = C_t dy_t + a_{t+1} g_{t+1}.
    """
    batch, direction = tl.program_id(1).to(tl.int64), tl.program_id(2)
    first = direction == 0
    reverse = direction + REVERSE == 1
    row = direction * tl.num_programs(1) + batch
    num_groups = tl.cdiv(CHANNELS, G * W)
    num_tiles = tl.cdiv(length, T)
    t4 = tl.arange(0, T)[:, None, None, None]
    state = tl.arange(0, N)
    u = tl.where(first, u0, u1) + batch * u_batch
    delta = tl.where(first, delta0, delta1) + batch * delta_batch
    B = tl.where(first, B0, B1) + batch * B_batch
    C = tl.where(first, C0, C1) + batch * C_batch
    own_BC = dBC + (
        (direction * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + batch
    ) * length * (2 * STATES)

    dout += batch * dout_batch
    z += batch * z_batch
    if HAS_Z:
        ungated += batch * length * CHANNELS
        dz += batch * length * CHANNELS
    du += row * length * CHANNELS
    ddelta += row * length * CHANNELS
    group = tl.program_id(0) * span
    while group < tl.minimum((tl.program_id(0) + 1) * span, num_groups):
        channels = (group * G + tl.arange(0, G))[:, None] * W + tl.arange(0, W)[None, :]
        inside = channels < CHANNELS
        A = load_A(tl.where(first, A0, A1), channels, inside, LOG_A, STATES, N)
        bias = load_vector(tl.where(first, bias0, bias1), channels, inside, HAS_BIAS)
        skip = load_vector(tl.where(first, D0, D1), channels, inside, HAS_D)
        weight = load_weight(tl.where(first, weight0, weight1), delta, group, CHANNELS, RANK, R, G, W)
        g = tl.zeros((G, N, W), tl.float32)
        sum_A = tl.zeros((G, N, W), tl.float32)
        sum_D = tl.zeros((G, W), tl.float32)
        sum_bias = tl.zeros((G, W), tl.float32)
        index = num_tiles - 1
        while index >= 0:
            tokens, live = order(index * T, length, length, reverse, T)
            mask = live[:, None, None] & inside[None]
            place = tokens[:, None, None] * CHANNELS + channels[None]
            saved = ((row * num_tiles + index) * num_groups + group) * (G * N * W) + state_offsets(G, N, W)
            h = tl.load(states + saved).to(tl.float32)
            x = load_rows(u, u_row, tokens, live, channels, inside).to(tl.float32)
            d = load_delta(delta, delta_row, tokens, live, channels, inside, RANK, R)
            b = load_states(B, B_row, tokens, live, STATES, N).to(tl.float32)
            c = load_states(C, C_row, tokens, live, STATES, N).to(tl.float32)
            dy = load_rows(dout, dout_row, tokens, live, channels, inside).to(tl.float32) * scale
            if HAS_Z:
                gate = load_rows(z, z_row, tokens, live, channels, inside).to(tl.float32)
                open_share = sigmoid(gate)
                if direction == 0:
                    y = tl.load(ungated + place, mask=mask, other=0.0).to(tl.float32)
                    tl.store(dz + place, dy * y * open_share * (1.0 + gate * (1.0 - open_share)), mask=mask)
                dy *= gate * open_share

            raw = project(d, weight, bias, RANK, T, G, W)
            step = tl.where(mask, softplus(raw) if SOFTPLUS else raw, 0.0)
            a4 = tl.exp2(step[:, :, None, :] * (A * LOG2E)[None])
            x4 = (step * x)[:, :, None, :] * b[:, None, :, None]
            # h enters through a (T, ...) tile: used as it is loaded, its layout in memory would spread to the scan.
            m4 = tl.where(t4 == 0, a4 * h[None], 0.0)
            h = take(m4, 0, t4) + take(x4, 0, t4)
            for t in tl.static_range(1, T):
                m = take(a4, t, t4) * h
                h = m + take(x4, t, t4)
                m4 = tl.where(t4 == t, m[None], m4)

            c4 = c[:, None, :, None] * dy[:, :, None, :]
            g4 = c4
            for i in tl.static_range(T):
                last = take(c4, T - 1 - i, t4) + g
                g = take(a4, T - 1 - i, t4) * last
                g4 = tl.where(t4 == T - 1 - i, last[None], g4)

            dC = tl.sum(tl.sum(dy[:, :, None, :] * m4, axis=1), axis=2)
            dC += b * tl.sum(tl.sum(dy * step * x, axis=1), axis=1)[:, None]
            dB = tl.sum(tl.sum(g4 * (step * x)[:, :, None, :], axis=1), axis=2)
            w4 = g4 * m4
            sum_A += tl.sum(w4 * step[:, :, None, :], axis=0)
            through_B = tl.sum(g4 * b[:, None, :, None], axis=2)
            dstep = x * through_B + tl.sum(w4 * A[None], axis=2)
            if SOFTPLUS:
                dstep *= sigmoid(raw)
            dstep = tl.where(mask, dstep, 0.0)
            sum_D += tl.sum(dy * x, axis=0)
            sum_bias += tl.sum(dstep, axis=0)
            tl.store(du + place, step * through_B + skip[None] * dy, mask=mask)
            tl.store(ddelta + place, dstep, mask=mask)
            wanted = live[:, None] & (state < STATES)[None, :]
            pointers = own_BC + tokens[:, None] * (2 * STATES) + state[None, :]
            if group > tl.program_id(0) * span:
                dB += tl.load(pointers, mask=wanted, other=0.0)
                dC += tl.load(pointers + STATES, mask=wanted, other=0.0)
            tl.store(pointers, dB, mask=wanted)
            tl.store(pointers + STATES, dC, mask=wanted)
            index -= 1

        there = (row * CHANNELS + channels[:, None, :]) * STATES + state[None, :, None]
        tl.store(
            dA + there,
            sum_A * A if LOG_A else sum_A,
            mask=inside[:, None, :] & (state < STATES)[None, :, None],
        )
        tl.store(dvectors + row * (2 * CHANNELS) + channels, sum_D, mask=inside)
        tl.store(dvectors + row * (2 * CHANNELS) + CHANNELS + channels, sum_bias, mask=inside)
        tl.debug_barrier()  # the next group adds to the dB and dC that other threads of this program have written
        group += 1
