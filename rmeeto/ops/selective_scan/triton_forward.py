# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""Triton kernels of the forward selective scan, both directions in one program.

A program is one warp. It scans G * W channels of one image, T tokens at a time: a tile is (T, G, N, W), with tokens and
groups of channels in each thread's registers and N states and W channels spread over the 32 threads, so that neither
the recurrence nor the choice of a token leaves a thread. Sums over states pass between fewer threads the larger W is,
sums over channels the smaller it is. Loops are ``while``: their trip counts are run-time values,
which Triton's interpreter cannot put into ``range``.

Names: B batch, L tokens, D channels, N states, R rank of the step size (0: the step size itself is given).
"""

from __future__ import annotations

import triton
import triton.language as tl

from rmeeto.ops.triton_math import LOG2E, exp2_polynomial, sigmoid, softplus, take


@triton.jit
def decay(x, t4, POLYNOMIAL: tl.constexpr):
    """2**x of a (T, G, N, W) tile, on the FMA units for every POLYNOMIAL-th token (0: for none)."""
    if POLYNOMIAL > 0:
        return tl.where(t4 % POLYNOMIAL == 0, exp2_polynomial(x), tl.exp2(x))
    else:
        return tl.exp2(x)


@triton.jit
def order(position, stop, length, reverse, T: tl.constexpr):
    """The T tokens scanned from ``position`` on, and whether each is one."""
    places = position + tl.arange(0, T)
    return tl.where(reverse, length - 1 - places, places), places < stop


@triton.jit
def load_rows(pointer, row, tokens, live, channels, inside):
    """(T, G, W) of a (B, L, D) tensor."""
    offsets = tokens[:, None, None] * row + channels[None]
    return tl.load(pointer + offsets, mask=live[:, None, None] & inside[None], other=0.0)


@triton.jit
def load_states(pointer, row, tokens, live, STATES: tl.constexpr, N: tl.constexpr):
    """(T, N) of a (B, L, N) tensor."""
    state = tl.arange(0, N)
    mask = live[:, None] & (state < STATES)[None, :]
    return tl.load(pointer + tokens[:, None] * row + state[None, :], mask=mask, other=0.0)


@triton.jit
def load_delta(pointer, row, tokens, live, channels, inside, RANK: tl.constexpr, R: tl.constexpr):
    """(T, G, W) step sizes, or the (R, T) features that they are projected from."""
    if RANK > 0:
        rank = tl.arange(0, R)
        mask = live[None, :] & (rank < RANK)[:, None]
        return tl.load(pointer + tokens[None, :] * row + rank[:, None], mask=mask, other=0.0)
    else:
        return load_rows(pointer, row, tokens, live, channels, inside)


@triton.jit
def load_weight(
    weight,
    delta,
    group,
    CHANNELS: tl.constexpr,
    RANK: tl.constexpr,
    R: tl.constexpr,
    G: tl.constexpr,
    W: tl.constexpr,
):
    """(G * W, R) of the step size's projection, in the features' type."""
    if RANK > 0:
        rows, rank = group * (G * W) + tl.arange(0, G * W), tl.arange(0, R)
        mask = (rows < CHANNELS)[:, None] & (rank < RANK)[None, :]
        tile = tl.load(weight + rows[:, None] * RANK + rank[None, :], mask=mask, other=0.0)
        return tile.to(delta.dtype.element_ty)
    else:
        return group


@triton.jit
def project(delta, weight, bias, RANK: tl.constexpr, T: tl.constexpr, G: tl.constexpr, W: tl.constexpr):
    """(T, G, W) step sizes before softplus."""
    if RANK > 0:
        step = tl.dot(weight, delta, input_precision="ieee")
        return tl.reshape(tl.trans(step), (T, G, W)) + bias[None]
    else:
        return delta.to(tl.float32) + bias[None]


@triton.jit
def load_vector(pointer, channels, inside, GIVEN: tl.constexpr):
    if GIVEN:
        return tl.load(pointer + channels, mask=inside, other=0.0).to(tl.float32)
    else:
        return tl.zeros(channels.shape, tl.float32)


@triton.jit
def load_A(pointer, channels, inside, LOG_A: tl.constexpr, STATES: tl.constexpr, N: tl.constexpr):
    """(G, N, W) of A, which LOG_A gives as log(-A)."""
    state = tl.arange(0, N)
    mask = inside[:, None, :] & (state < STATES)[None, :, None]
    offsets = channels[:, None, :] * STATES + state[None, :, None]
    tile = tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    return -tl.exp2(tile * LOG2E) if LOG_A else tile


@triton.jit
def state_offsets(G: tl.constexpr, N: tl.constexpr, W: tl.constexpr):
    """(G, N, W) places of a state in the buffers that programs leave for each other, whatever their G and W."""
    g, n, w = tl.arange(0, G), tl.arange(0, N), tl.arange(0, W)
    return n[None, :, None] * (G * W) + g[:, None, None] * W + w[None, None, :]


@triton.jit(do_not_specialize=["length", "chunk"])
def scan_state_fwd_kernel(
    u0, delta0, weight0, bias0, A0, B0,
    u1, delta1, weight1, bias1, A1, B1,
    ends, steps,
    length, chunk,
    u_batch, u_row, delta_batch, delta_row, B_batch, B_row,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr,
    DIRECTIONS: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr,
    LOG_A: tl.constexpr, T: tl.constexpr, G: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
):  # fmt: skip
    """The state that each chunk of tokens ends with when it starts from zero, and the sum of its step sizes.

    Grid: groups of channels, B, chunks * directions. Writes ends (directions, B, chunks, groups, N, G * W) and steps
    (directions, B, chunks, D), both fp32.
    """
    group, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_chunks = tl.num_programs(2) // DIRECTIONS
    c, direction = tl.program_id(2) % num_chunks, tl.program_id(2) // num_chunks
    first = direction == 0
    reverse = direction + REVERSE == 1
    channels = (group * G + tl.arange(0, G))[:, None] * W + tl.arange(0, W)[None, :]
    inside = channels < CHANNELS
    t4 = tl.arange(0, T)[:, None, None, None]

    u = tl.where(first, u0, u1) + batch * u_batch
    delta = tl.where(first, delta0, delta1) + batch * delta_batch
    B = tl.where(first, B0, B1) + batch * B_batch
    A = load_A(tl.where(first, A0, A1), channels, inside, LOG_A, STATES, N) * LOG2E
    bias = load_vector(tl.where(first, bias0, bias1), channels, inside, HAS_BIAS)
    weight = load_weight(tl.where(first, weight0, weight1), delta, group, CHANNELS, RANK, R, G, W)

    h = tl.zeros((G, N, W), tl.float32)
    total = tl.zeros((G, W), tl.float32)
    position = c * chunk
    stop = tl.minimum(position + chunk, length)
    if reverse:
        position, stop = length - stop, length - position
    while position < stop:
        tokens, live = order(position, stop, length, reverse, T)
        x = load_rows(u, u_row, tokens, live, channels, inside).to(tl.float32)
        d = load_delta(delta, delta_row, tokens, live, channels, inside, RANK, R)
        b = load_states(B, B_row, tokens, live, STATES, N).to(tl.float32)
        step = project(d, weight, bias, RANK, T, G, W)
        step = tl.where(live[:, None, None] & inside[None], softplus(step) if SOFTPLUS else step, 0.0)
        total += tl.sum(step, axis=0)
        a4 = decay(step[:, :, None, :] * A[None], t4, POLYNOMIAL)
        x4 = (step * x)[:, :, None, :] * b[:, None, :, None]
        for t in tl.static_range(T):
            h = take(a4, t, t4) * h + take(x4, t, t4)
        position += T
    place = (direction * tl.num_programs(1) + batch) * num_chunks + c
    tl.store(ends + (place * tl.num_programs(0) + group) * (G * N * W) + state_offsets(G, N, W), h)
    tl.store(steps + place * CHANNELS + channels, total, mask=inside)


@triton.jit(do_not_specialize=["length", "chunk"])
def scan_fwd_kernel(
    u0, delta0, weight0, bias0, A0, B0, C0, D0,
    u1, delta1, weight1, bias1, A1, B1, C1, D1,
    z, out, ungated, states, ends, steps,
    length, chunk,
    u_batch, u_row, delta_batch, delta_row, B_batch, B_row, C_batch, C_row, z_batch, z_row,
    scale,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr,
    DIRECTIONS: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, KEEP: tl.constexpr, SPLIT: tl.constexpr,
    LOG_A: tl.constexpr, T: tl.constexpr, G: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
):  # fmt: skip
    """Scan a chunk of tokens (all of them unless SPLIT) in one or both directions, add, gate.

    Grid: groups of channels, B, chunks. The first direction leaves its part where the second picks it up: in
    ``ungated`` (KEEP) or in ``out``. KEEP also writes the state before each tile, (directions, B, tiles, groups,
    N, G * W), for the backward pass.
    """
    group, batch, c = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    channels = (group * G + tl.arange(0, G))[:, None] * W + tl.arange(0, W)[None, :]
    inside = channels < CHANNELS
    t4 = tl.arange(0, T)[:, None, None, None]
    offsets = state_offsets(G, N, W)
    out += batch * length * CHANNELS
    if KEEP:
        ungated += batch * length * CHANNELS
    partial = ungated if KEEP else out

    direction = 0
    while direction < DIRECTIONS:
        first = direction == 0
        reverse = direction + REVERSE == 1
        u = tl.where(first, u0, u1) + batch * u_batch
        delta = tl.where(first, delta0, delta1) + batch * delta_batch
        B = tl.where(first, B0, B1) + batch * B_batch
        C = tl.where(first, C0, C1) + batch * C_batch
        A = load_A(tl.where(first, A0, A1), channels, inside, LOG_A, STATES, N) * LOG2E
        bias = load_vector(tl.where(first, bias0, bias1), channels, inside, HAS_BIAS)
        skip = load_vector(tl.where(first, D0, D1), channels, inside, HAS_D)
        weight = load_weight(tl.where(first, weight0, weight1), delta, group, CHANNELS, RANK, R, G, W)

        h = tl.zeros((G, N, W), tl.float32)
        row = direction * tl.num_programs(1) + batch
        if SPLIT:  # the state this chunk starts from: fold the chunks that are scanned before it
            num_chunks = tl.num_programs(2)
            i = tl.where(reverse, num_chunks - 1, 0)
            while i != c:
                place = row * num_chunks + i
                total = tl.load(steps + place * CHANNELS + channels, mask=inside, other=0.0)
                end = tl.load(ends + (place * tl.num_programs(0) + group) * (G * N * W) + offsets)
                h = tl.exp2(total[:, None, :] * A) * h + end
                i += tl.where(reverse, -1, 1)
            # Through a tile into the layout that tiles are scanned in: that of `ends` in memory would spread to them.
            h = take(tl.where(t4 == 0, h[None], 0.0), 0, t4)
        position = c * chunk
        stop = tl.minimum(position + chunk, length)
        if reverse:
            position, stop = length - stop, length - position
        saved = states + (row * tl.cdiv(length, T) * tl.num_programs(0) + group) * (G * N * W)

        # Each tile is loaded while the one before it is scanned.
        tokens, live = order(position, stop, length, reverse, T)
        x = load_rows(u, u_row, tokens, live, channels, inside)
        d = load_delta(delta, delta_row, tokens, live, channels, inside, RANK, R)
        b = load_states(B, B_row, tokens, live, STATES, N)
        cc = load_states(C, C_row, tokens, live, STATES, N)
        while position < stop:
            tokens, live = order(position + T, stop, length, reverse, T)
            next_x = load_rows(u, u_row, tokens, live, channels, inside)
            next_d = load_delta(delta, delta_row, tokens, live, channels, inside, RANK, R)
            next_b = load_states(B, B_row, tokens, live, STATES, N)
            next_c = load_states(C, C_row, tokens, live, STATES, N)

            tokens, live = order(position, stop, length, reverse, T)
            mask = live[:, None, None] & inside[None]
            place = tokens[:, None, None] * CHANNELS + channels[None]
            last = direction == DIRECTIONS - 1
            until = tl.where(last, stop, position)  # the first of two directions neither adds nor gates
            finish = position + tl.arange(0, T) < until
            if DIRECTIONS == 2:
                other = tl.load(partial + place, mask=finish[:, None, None] & inside[None], other=0.0)
            if HAS_Z:
                gate = load_rows(z + batch * z_batch, z_row, tokens, finish, channels, inside).to(tl.float32)
            if KEEP:
                tl.store(saved + offsets, h)
                saved += tl.num_programs(0) * (G * N * W)
            x = x.to(tl.float32)
            step = project(d, weight, bias, RANK, T, G, W)
            step = tl.where(mask, softplus(step) if SOFTPLUS else step, 0.0)
            a4 = decay(step[:, :, None, :] * A[None], t4, POLYNOMIAL)
            x4 = (step * x)[:, :, None, :] * b.to(tl.float32)[:, None, :, None]
            h4 = a4
            for t in tl.static_range(T):
                h = take(a4, t, t4) * h + take(x4, t, t4)
                h4 = tl.where(t4 == t, h[None], h4)
            y = tl.sum(h4 * cc.to(tl.float32)[:, None, :, None], axis=2) + skip[None] * x
            if DIRECTIONS == 2:
                y += other.to(tl.float32)
            if KEEP or DIRECTIONS == 2:
                tl.store(partial + place, y, mask=mask)
            if last:
                if HAS_Z:
                    y *= gate * sigmoid(gate)
                tl.store(out + place, y * scale, mask=mask)
            position += T
            x, d, b, cc = next_x, next_d, next_b, next_c
        tl.debug_barrier()  # the second direction reads what other threads of this program have written
        direction += 1
