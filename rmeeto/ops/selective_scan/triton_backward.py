# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""Triton kernel of the backward selective scan; tiles and names as in `triton_forward`."""

from __future__ import annotations

import triton
import triton.language as tl

from rmeeto.ops.selective_scan.triton_forward import (
    as_scanned,
    fold,
    inside_of,
    load_A,
    load_delta,
    load_rows,
    load_state,
    load_states,
    load_vector,
    load_weight,
    project,
    projected,
    starts,
    state_offsets,
    state_size,
    tile_tokens,
)
from rmeeto.ops.triton_math import LOG2E, sigmoid, softplus, take


@triton.jit
def scan_again(
    stored, scratch, index, num_tiles, reverse, u, u_row, delta, delta_row, B, B_row, length, channels, inside, A,
    weight, bias, t4, RANK: tl.constexpr, SOFTPLUS: tl.constexpr, STATES: tl.constexpr, EVERY: tl.constexpr,
    T: tl.constexpr, G: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Write the state before each tile of the group of EVERY that tile ``index`` is in, from the stored one."""
    begin = index // EVERY * EVERY
    end = tl.minimum(begin + EVERY, num_tiles)
    h = as_scanned(load_state(stored, inside, EVEN), t4)
    for i in tl.range(0, end - begin):
        at = tl.where(reverse, end - 1 - i, begin + i)
        tl.store(scratch + (at - begin) * (G * N * W), h)
        _, live, rows = tile_tokens(at, length, reverse, T)
        x = load_rows(u, u_row, rows, channels, inside, EVEN).to(tl.float32)
        d = load_delta(delta, delta_row, rows, channels, inside, EVEN, RANK, R)
        b = load_states(B, B_row, rows, STATES, N).to(tl.float32)
        step = project(d, weight, bias, RANK, T, G, W)
        step = tl.where(live[:, None, None], softplus(step) if SOFTPLUS else step, 0.0)
        a4 = tl.exp2(step[:, :, None, :] * (A * LOG2E)[None])
        x4 = (step * x)[:, :, None, :] * b[:, None, :, None]
        for t in tl.static_range(T):
            h = take(a4, t, t4) * h + take(x4, t, t4)
    tl.debug_barrier()  # what one thread has written another may read


@triton.jit(do_not_specialize=["length", "span", "chunk", "num_chunks"])
def scan_bwd_kernel(
    u0, delta0, weight0, bias0, A0, B0, C0, D0,
    u1, delta1, weight1, bias1, A1, B1, C1, D1,
    z, dout, ungated, states, ends, steps, scratch,
    du, ddelta, dz, dBC, dparameters,
    length, span, chunk, num_chunks,
    u_batch, u_row, delta_batch, delta_row, B_batch, B_row, C_batch, C_row, z_batch, z_row, dout_batch, dout_row,
    dz_batch, dz_row,
    scale,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, SPLIT: tl.constexpr,
    LOG_A: tl.constexpr, T: tl.constexpr, G: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
    EVEN: tl.constexpr, PACKED: tl.constexpr, EVERY: tl.constexpr, AHEAD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of one direction of `scan_fwd_kernel`, tile by tile from the last token scanned to the first.

    Each tile's states are scanned again from the one before it, and that one from the one that was stored. Grid: spans
    of ``span`` groups of channels, B, chunks * directions. Writes
      du, ddelta (directions, B, L, D): the latter before softplus and before the projection;
      dz (B, L, D), by the first direction;
      dBC (directions, spans, B, L, 2, N) fp32, summed over the span's channels;
      dparameters (directions, B, chunks, D N + 2 D) fp32: of A (LOG_A: of log(-A)), D and the bias, one for each chunk
        of each image.

    h_t = m_t + x_t B_t with m_t = a_t h_{t-1}, x_t = delta_t u_t; g_t = dL/dh_t = C_t dy_t + a_{t+1} g_{t+1}.
    """
    batch = tl.program_id(1).to(tl.int64)
    c, direction = tl.program_id(2) % num_chunks, tl.program_id(2) // num_chunks
    first = direction == 0
    reverse = direction + REVERSE == 1
    row = direction * tl.num_programs(1) + batch
    part = row * num_chunks + c
    num_groups = tl.cdiv(CHANNELS, G * W)
    num_tiles = tl.cdiv(length, T)
    begin = c * chunk
    end = tl.minimum(begin + chunk, num_tiles)
    t4 = tl.arange(0, T)[:, None, None, None]
    state = tl.arange(0, N)
    u = tl.where(first, u0, u1) + batch * u_batch
    delta, B, C, delta_by, B_by, C_by = projected(
        tl.where(first, delta0, delta1), tl.where(first, B0, B1), tl.where(first, C0, C1), batch, length,
        delta_batch, B_batch, C_batch, delta_row, B_row, C_row, RANK, STATES, PACKED,
    )  # fmt: skip
    own_BC = dBC + ((direction * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + batch) * length * (
        2 * STATES
    )
    if EVERY > 1:
        program = (row * num_chunks + c) * tl.num_programs(0) + tl.program_id(0)
        scratch += program * (EVERY * G * N * W) + tl.reshape(tl.arange(0, G * N * W), (G, N, W))

    dout += batch * dout_batch
    z += batch * z_batch
    if HAS_Z:
        ungated += batch * length * CHANNELS
        dz += batch * dz_batch
    du += row * length * CHANNELS
    ddelta += row * length * CHANNELS
    for group in tl.range(tl.program_id(0) * span, tl.minimum((tl.program_id(0) + 1) * span, num_groups)):
        channels = (group * G + tl.arange(0, G))[:, None] * W + tl.arange(0, W)[None, :]
        inside = channels < CHANNELS
        A = load_A(tl.where(first, A0, A1), channels, inside, LOG_A, STATES, N)
        bias = load_vector(tl.where(first, bias0, bias1), channels, inside, HAS_BIAS)
        skip = load_vector(tl.where(first, D0, D1), channels, inside, HAS_D)
        weight = load_weight(tl.where(first, weight0, weight1), delta, group, CHANNELS, RANK, R, G, W)
        saved = states + row * tl.cdiv(num_tiles, EVERY) * state_size(CHANNELS, N) + state_offsets(channels, N)
        g = tl.zeros((G, N, W), tl.float32)
        if SPLIT:  # of the chunks that are behind this one in the order of the scan
            g = scale * fold(
                ends, steps, row, num_chunks, c, reverse == 0, channels, inside, A * LOG2E, t4, G, N, W, CHANNELS, EVEN
            )  # fmt: skip
        sum_A = tl.zeros((G, N, W), tl.float32)
        sum_D = tl.zeros((G, W), tl.float32)
        sum_bias = tl.zeros((G, W), tl.float32)
        if AHEAD:  # each tile is loaded while the one before it is worked on
            _, _, rows = tile_tokens(tl.where(reverse, begin, end - 1), length, reverse, T)
            next_x = load_rows(u, u_row, rows, channels, inside, EVEN)
            next_d = load_delta(delta, delta_by, rows, channels, inside, EVEN, RANK, R)
            next_b = load_states(B, B_by, rows, STATES, N)
            next_c = load_states(C, C_by, rows, STATES, N)
            next_dy = load_rows(dout, dout_row, rows, channels, inside, EVEN)
            if HAS_Z:
                next_gate = load_rows(z, z_row, rows, channels, inside, EVEN)
        for i in tl.range(0, end - begin, num_stages=STAGES):
            index = tl.where(reverse, begin + i, end - 1 - i)
            tokens, live, rows = tile_tokens(index, length, reverse, T)
            stored = saved + index // EVERY * state_size(CHANNELS, N)
            if EVERY > 1:
                if (i == 0) | starts(index, num_tiles, reverse == 0, EVERY):
                    scan_again(
                        stored, scratch, index, num_tiles, reverse, u, u_row, delta, delta_by, B, B_by, length,
                        channels, inside, A, weight, bias, t4, RANK, SOFTPLUS, STATES, EVERY, T, G, N, W, R, EVEN,
                    )  # fmt: skip
                h = tl.load(scratch + index % EVERY * (G * N * W))
            else:
                h = load_state(stored, inside, EVEN)
            if AHEAD:
                x, d, b, cc, dy = next_x, next_d, next_b, next_c, next_dy
                following = tl.minimum(i + 1, end - begin - 1)
                _, _, ahead = tile_tokens(tl.where(reverse, begin + following, end - 1 - following), length, reverse, T)
                next_x = load_rows(u, u_row, ahead, channels, inside, EVEN)
                next_d = load_delta(delta, delta_by, ahead, channels, inside, EVEN, RANK, R)
                next_b = load_states(B, B_by, ahead, STATES, N)
                next_c = load_states(C, C_by, ahead, STATES, N)
                next_dy = load_rows(dout, dout_row, ahead, channels, inside, EVEN)
                if HAS_Z:
                    gate = next_gate
                    next_gate = load_rows(z, z_row, ahead, channels, inside, EVEN)
            else:
                x = load_rows(u, u_row, rows, channels, inside, EVEN)
                d = load_delta(delta, delta_by, rows, channels, inside, EVEN, RANK, R)
                b = load_states(B, B_by, rows, STATES, N)
                cc = load_states(C, C_by, rows, STATES, N)
                dy = load_rows(dout, dout_row, rows, channels, inside, EVEN)
                if HAS_Z:
                    gate = load_rows(z, z_row, rows, channels, inside, EVEN)
            mask = inside_of(live, inside, EVEN)
            place = tokens[:, None, None] * CHANNELS + channels[None]
            x, b, cc = x.to(tl.float32), b.to(tl.float32), cc.to(tl.float32)
            dy = tl.where(live[:, None, None], dy.to(tl.float32) * scale, 0.0)
            if HAS_Z:
                gate = gate.to(tl.float32)
                open_share = sigmoid(gate)
                if direction == 0:
                    y = load_rows(ungated, CHANNELS, rows, channels, inside, EVEN).to(tl.float32)
                    there = dz + tokens[:, None, None] * dz_row + channels[None]
                    tl.store(there, dy * y * open_share * (1.0 + gate * (1.0 - open_share)), mask=mask)
                dy *= gate * open_share

            raw = project(d, weight, bias, RANK, T, G, W)
            step = tl.where(live[:, None, None], softplus(raw) if SOFTPLUS else raw, 0.0)
            a4 = tl.exp2(step[:, :, None, :] * (A * LOG2E)[None])
            x4 = (step * x)[:, :, None, :] * b[:, None, :, None]
            # h enters through a (T, ...) tile: used as it is loaded, its layout in memory would spread to the scan.
            m4 = tl.where(t4 == 0, a4 * h[None], 0.0)
            h = take(m4, 0, t4) + take(x4, 0, t4)
            for t in tl.static_range(1, T):
                m = take(a4, t, t4) * h
                h = m + take(x4, t, t4)
                m4 = tl.where(t4 == t, m[None], m4)

            c4 = cc[:, None, :, None] * dy[:, :, None, :]
            g4 = c4
            for j in tl.static_range(T):
                last = take(c4, T - 1 - j, t4) + g
                g = take(a4, T - 1 - j, t4) * last
                g4 = tl.where(t4 == T - 1 - j, last[None], g4)

            dC = tl.sum(tl.sum(dy[:, :, None, :] * m4, axis=1), axis=2)
            dC += b * tl.sum(tl.sum(dy * step * x, axis=1), axis=1)[:, None]
            dB = tl.sum(tl.sum(g4 * (step * x)[:, :, None, :], axis=1), axis=2)
            w4 = g4 * m4
            sum_A += tl.sum(w4 * step[:, :, None, :], axis=0)
            through_B = tl.sum(g4 * b[:, None, :, None], axis=2)
            dstep = x * through_B + tl.sum(w4 * A[None], axis=2)
            if SOFTPLUS:
                dstep *= sigmoid(raw)
            dstep = tl.where(live[:, None, None], dstep, 0.0)
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

        own = dparameters + part * (CHANNELS * (STATES + 2))
        tl.store(
            own + channels[:, None, :] * STATES + state[None, :, None],
            sum_A * A if LOG_A else sum_A,
            mask=inside[:, None, :] & (state < STATES)[None, :, None],
        )
        own += CHANNELS * STATES
        tl.store(own + channels, sum_D, mask=inside)
        tl.store(own + CHANNELS + channels, sum_bias, mask=inside)
        tl.debug_barrier()  # the next group adds to the dB and dC that other threads of this program have written
