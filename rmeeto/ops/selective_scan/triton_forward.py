# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""Triton kernels of the forward selective scan, both directions in one program.

A program is one warp. It scans G * W channels of one image, T tokens at a time: a tile is (T, G, N, W), with tokens and
groups of channels in each thread's registers and N states and W channels spread over the 32 threads, so that neither
the recurrence nor the choice of a token leaves a thread. Sums over states pass between fewer threads the larger W is,
sums over channels the smaller it is. Tile i holds the tokens from i T on in both directions; the backward one takes
tiles, and tokens in them, from the last to the first.

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
def tile_tokens(index, length, reverse, T: tl.constexpr):
    """The T tokens of a tile in the order that they are scanned in, whether each is one, and where its row is.

    A tile's tokens behind the last one read the row of the last one: a step size of 0 lets them change nothing, and
    loads need no mask.
    """
    t = tl.arange(0, T)
    tokens = index * T + tl.where(reverse, T - 1 - t, t)
    return tokens, tokens < length, tl.minimum(tokens, length - 1)


@triton.jit
def load_rows(pointer, row, rows, channels, inside, EVEN: tl.constexpr):
    """(T, G, W) of a (B, L, D) tensor; EVEN: no group of channels is cut off."""
    pointers = pointer + rows[:, None, None] * row + channels[None]
    if EVEN:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=inside[None], other=0.0)


@triton.jit
def load_states(pointer, row, rows, STATES: tl.constexpr, N: tl.constexpr):
    """(T, N) of a (B, L, N) tensor, in fp32 at once: once for each thread that loads, not for each that reads."""
    state = tl.arange(0, N)
    pointers = pointer + rows[:, None] * row + state[None, :]
    if STATES == N:
        return tl.load(pointers).to(tl.float32)
    else:
        return tl.load(pointers, mask=(state < STATES)[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_delta(pointer, row, rows, channels, inside, EVEN: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr):
    """(T, G, W) step sizes, or the (R, T) features that they are projected from."""
    if RANK > 0:
        rank = tl.arange(0, R)
        return tl.load(pointer + rows[None, :] * row + rank[:, None], mask=(rank < RANK)[:, None], other=0.0)
    else:
        return load_rows(pointer, row, rows, channels, inside, EVEN)


@triton.jit
def projected(
    delta, B, C, batch, length, delta_batch, B_batch, C_batch, delta_row, B_row, C_row,
    RANK: tl.constexpr, STATES: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """An image's features, B and C, and the distances of their rows.

    PACKED: they are slices, in this order, of rows of so many numbers; loads then know how they are aligned.
    """
    if PACKED > 0:
        delta += batch * length * PACKED
        return delta, delta + RANK, delta + RANK + STATES, PACKED, PACKED, PACKED
    else:
        return delta + batch * delta_batch, B + batch * B_batch, C + batch * C_batch, delta_row, B_row, C_row


@triton.jit
def inside_of(live, inside, EVEN: tl.constexpr):
    """(T, G, W) of what is to be stored."""
    return live[:, None, None] if EVEN else live[:, None, None] & inside[None]


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


UNIT = tl.constexpr(16)  # channels of a state that lie side by side in buffers


@triton.jit
def state_offsets(channels, N: tl.constexpr):
    """(G, N, W) places of a state in the buffers that programs leave for each other, whatever their tiles."""
    channels = channels[:, None, :]
    return channels // UNIT * (UNIT * N) + tl.arange(0, N)[None, :, None] * UNIT + channels % UNIT


@triton.jit
def state_size(CHANNELS: tl.constexpr, N: tl.constexpr):
    return (CHANNELS + UNIT - 1) // UNIT * UNIT * N


@triton.jit
def load_state(pointers, inside, EVEN: tl.constexpr):
    """(G, N, W) of a state."""
    if EVEN:
        return tl.load(pointers).to(tl.float32)
    else:
        return tl.load(pointers, mask=inside[:, None, :], other=0.0).to(tl.float32)


@triton.jit
def store_state(pointers, state, inside, EVEN: tl.constexpr):
    if EVEN:
        tl.store(pointers, state)
    else:
        tl.store(pointers, state, mask=inside[:, None, :])


@triton.jit
def starts(index, num_tiles, reverse, EVERY: tl.constexpr):
    """Whether a tile is the first scanned of its group of EVERY tiles."""
    if EVERY == 1:
        return index >= 0
    else:
        return tl.where(reverse, (index % EVERY == EVERY - 1) | (index == num_tiles - 1), index % EVERY == 0)


@triton.jit
def as_scanned(h, t4):
    """A state, through a tile, in the layout that tiles are scanned in: one in memory would spread to the scan."""
    return take(tl.where(t4 == 0, h[None], 0.0), 0, t4)


@triton.jit
def fold(
    ends, steps, row, num_chunks, c, reverse, channels, inside, A, t4,
    G: tl.constexpr, N: tl.constexpr, W: tl.constexpr, CHANNELS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The state that chunk c starts from: what those scanned before it leave, each decayed by the next."""
    h = tl.zeros((G, N, W), tl.float32)
    for i in tl.range(0, tl.where(reverse, num_chunks - 1 - c, c)):
        at = row * num_chunks + tl.where(reverse, num_chunks - 1 - i, i)
        total = tl.load(steps + at * CHANNELS + channels, mask=inside, other=0.0)
        end = load_state(ends + at * state_size(CHANNELS, N) + state_offsets(channels, N), inside, EVEN)
        h = tl.exp2(total[:, None, :] * A) * h + end
    return as_scanned(h, t4)


@triton.jit(do_not_specialize=["length", "chunk"])
def scan_state_kernel(
    u0, delta0, weight0, bias0, A0, B0, C0,
    u1, delta1, weight1, bias1, A1, B1, C1,
    z, ends, steps,
    length, chunk,
    u_batch, u_row, delta_batch, delta_row, B_batch, B_row, C_batch, C_row, z_batch, z_row,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr,
    DIRECTIONS: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, ADJOINT: tl.constexpr,
    LOG_A: tl.constexpr, T: tl.constexpr, G: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
    EVEN: tl.constexpr, PACKED: tl.constexpr, POLYNOMIAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The state that each chunk of tiles ends with when it starts from zero, and the sum of its step sizes.

    ADJOINT: of the backward pass, g_{t-1} = a_t (g_t + C_t dy_t), from the last token to the first; u is then dout,
    and what uses the outputs multiplies them by ``scale``.
    Grid: groups of channels, B, chunks * directions. Writes ends (directions, B, chunks, D / 16, N, 16) and steps
    (directions, B, chunks, D), both fp32.
    """
    group, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_chunks = tl.num_programs(2) // DIRECTIONS
    c, direction = tl.program_id(2) % num_chunks, tl.program_id(2) // num_chunks
    first = direction == 0
    reverse = direction + REVERSE == 1
    descends = reverse != ADJOINT
    channels = (group * G + tl.arange(0, G))[:, None] * W + tl.arange(0, W)[None, :]
    inside = channels < CHANNELS
    t4 = tl.arange(0, T)[:, None, None, None]
    u = tl.where(first, u0, u1) + batch * u_batch
    delta, B, C, delta_by, B_by, C_by = projected(
        tl.where(first, delta0, delta1), tl.where(first, B0, B1), tl.where(first, C0, C1), batch, length,
        delta_batch, B_batch, C_batch, delta_row, B_row, C_row, RANK, STATES, PACKED,
    )  # fmt: skip
    z += batch * z_batch
    A = load_A(tl.where(first, A0, A1), channels, inside, LOG_A, STATES, N) * LOG2E
    bias = load_vector(tl.where(first, bias0, bias1), channels, inside, HAS_BIAS)
    weight = load_weight(tl.where(first, weight0, weight1), delta, group, CHANNELS, RANK, R, G, W)

    h = tl.zeros((G, N, W), tl.float32)
    total = tl.zeros((G, W), tl.float32)
    begin = c * chunk
    end = tl.minimum(begin + chunk, tl.cdiv(length, T))
    for i in tl.range(0, end - begin, num_stages=STAGES):
        index = tl.where(descends, end - 1 - i, begin + i)
        _, live, rows = tile_tokens(index, length, descends, T)
        x = load_rows(u, u_row, rows, channels, inside, EVEN).to(tl.float32)
        d = load_delta(delta, delta_by, rows, channels, inside, EVEN, RANK, R)
        b = load_states(C if ADJOINT else B, C_by if ADJOINT else B_by, rows, STATES, N).to(tl.float32)
        step = project(d, weight, bias, RANK, T, G, W)
        step = tl.where(live[:, None, None], softplus(step) if SOFTPLUS else step, 0.0)
        total += tl.sum(step, axis=0)
        if not ADJOINT:
            x *= step
        else:
            x = tl.where(live[:, None, None], x, 0.0)
            if HAS_Z:
                gate = load_rows(z, z_row, rows, channels, inside, EVEN).to(tl.float32)
                x *= gate * sigmoid(gate)
        a4 = decay(step[:, :, None, :] * A[None], t4, POLYNOMIAL)
        x4 = x[:, :, None, :] * b[:, None, :, None]
        for t in tl.static_range(T):
            if ADJOINT:
                h = take(a4, t, t4) * (h + take(x4, t, t4))
            else:
                h = take(a4, t, t4) * h + take(x4, t, t4)
    place = (direction * tl.num_programs(1) + batch) * num_chunks + c
    store_state(ends + place * state_size(CHANNELS, N) + state_offsets(channels, N), h, inside, EVEN)
    tl.store(steps + place * CHANNELS + channels, total, mask=inside)


@triton.jit
def scan_direction(
    u, delta, weight, bias, A, B, C, D, z, partial, out, states, ends, steps, batch, length, begin, end,
    u_row, delta_row, B_row, C_row, z_row, scale, channels, inside,
    DIRECTION: tl.constexpr, REVERSE: tl.constexpr, LAST: tl.constexpr,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, KEEP: tl.constexpr, SPLIT: tl.constexpr,
    LOG_A: tl.constexpr, T: tl.constexpr, G: tl.constexpr, N: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
    EVEN: tl.constexpr, EVERY: tl.constexpr, POLYNOMIAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One direction of `scan_fwd_kernel`; pointers are those of the image."""
    group, c = tl.program_id(0), tl.program_id(2)
    num_tiles = tl.cdiv(length, T)
    t4 = tl.arange(0, T)[:, None, None, None]
    A = load_A(A, channels, inside, LOG_A, STATES, N) * LOG2E
    bias = load_vector(bias, channels, inside, HAS_BIAS)
    skip = load_vector(D, channels, inside, HAS_D)
    weight = load_weight(weight, delta, group, CHANNELS, RANK, R, G, W)

    row = DIRECTION * tl.num_programs(1) + batch
    h = tl.zeros((G, N, W), tl.float32)
    if SPLIT:
        h = fold(
            ends, steps, row, tl.num_programs(2), c, REVERSE, channels, inside, A, t4, G, N, W, CHANNELS, EVEN
        )  # fmt: skip
    saved = states + row * tl.cdiv(num_tiles, EVERY) * state_size(CHANNELS, N) + state_offsets(channels, N)

    # Each tile is loaded while the one before it is scanned.
    _, _, rows = tile_tokens(end - 1 if REVERSE else begin, length, REVERSE, T)
    x = load_rows(u, u_row, rows, channels, inside, EVEN)
    d = load_delta(delta, delta_row, rows, channels, inside, EVEN, RANK, R)
    b = load_states(B, B_row, rows, STATES, N)
    cc = load_states(C, C_row, rows, STATES, N)
    for i in tl.range(0, end - begin, num_stages=STAGES):
        following = tl.minimum(i + 1, end - begin - 1)
        _, _, rows = tile_tokens(end - 1 - following if REVERSE else begin + following, length, REVERSE, T)
        next_x = load_rows(u, u_row, rows, channels, inside, EVEN)
        next_d = load_delta(delta, delta_row, rows, channels, inside, EVEN, RANK, R)
        next_b = load_states(B, B_row, rows, STATES, N)
        next_c = load_states(C, C_row, rows, STATES, N)

        index = end - 1 - i if REVERSE else begin + i
        tokens, live, rows = tile_tokens(index, length, REVERSE, T)
        mask = inside_of(live, inside, EVEN)
        if LAST and DIRECTION > 0:
            other = load_rows(partial, CHANNELS, rows, channels, inside, EVEN).to(tl.float32)
        if LAST and HAS_Z:
            gate = load_rows(z, z_row, rows, channels, inside, EVEN).to(tl.float32)
        if KEEP:
            if starts(index, num_tiles, REVERSE, EVERY):
                kept = as_scanned(h, t4)
                store_state(saved + index // EVERY * state_size(CHANNELS, N), kept, inside, EVEN)
        x = x.to(tl.float32)
        step = project(d, weight, bias, RANK, T, G, W)
        step = tl.where(live[:, None, None], softplus(step) if SOFTPLUS else step, 0.0)
        a4 = decay(step[:, :, None, :] * A[None], t4, POLYNOMIAL)
        x4 = (step * x)[:, :, None, :] * b.to(tl.float32)[:, None, :, None]
        h4 = a4
        for t in tl.static_range(T):
            h = take(a4, t, t4) * h + take(x4, t, t4)
            h4 = tl.where(t4 == t, h[None], h4)
        y = tl.sum(h4 * cc.to(tl.float32)[:, None, :, None], axis=2) + skip[None] * x
        place = tokens[:, None, None] * CHANNELS + channels[None]
        if LAST and DIRECTION > 0:
            y += other
        if KEEP or not LAST:
            tl.store(partial + place, y, mask=mask)
        if LAST:
            if HAS_Z:
                y *= gate * sigmoid(gate)
            tl.store(out + place, y * scale, mask=mask)
        x, d, b, cc = next_x, next_d, next_b, next_c


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
    EVEN: tl.constexpr, PACKED: tl.constexpr, EVERY: tl.constexpr, POLYNOMIAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Scan a chunk of tiles (all of them unless SPLIT) in one or both directions, add, gate.

    Grid: groups of channels, B, chunks. The first direction leaves its part where the second picks it up: in
    ``ungated`` (KEEP) or in ``out``. KEEP also writes the state before every EVERY-th tile, (directions, B, tiles /
    EVERY, D / 16, N, 16), for the backward pass; chunks begin at one of these.
    """
    group, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = (group * G + tl.arange(0, G))[:, None] * W + tl.arange(0, W)[None, :]
    inside = channels < CHANNELS
    begin = tl.program_id(2) * chunk
    end = tl.minimum(begin + chunk, tl.cdiv(length, T))
    out += batch * length * CHANNELS
    z += batch * z_batch
    if KEEP:
        ungated += batch * length * CHANNELS
    partial = ungated if KEEP else out

    for direction in tl.static_range(DIRECTIONS):
        delta, B, C, delta_by, B_by, C_by = projected(
            delta1 if direction else delta0, B1 if direction else B0, C1 if direction else C0, batch, length,
            delta_batch, B_batch, C_batch, delta_row, B_row, C_row, RANK, STATES, PACKED,
        )  # fmt: skip
        scan_direction(
            (u1 if direction else u0) + batch * u_batch, delta, weight1 if direction else weight0,
            bias1 if direction else bias0, A1 if direction else A0, B, C, D1 if direction else D0,
            z, partial, out, states, ends, steps, batch, length, begin, end,
            u_row, delta_by, B_by, C_by, z_row, scale, channels, inside,
            direction, direction + REVERSE == 1, direction == DIRECTIONS - 1,
            CHANNELS, STATES, RANK, SOFTPLUS, HAS_BIAS, HAS_D, HAS_Z, KEEP, SPLIT,
            LOG_A, T, G, N, W, R, EVEN, EVERY, POLYNOMIAL, STAGES,
        )  # fmt: skip
        tl.debug_barrier()  # the second direction reads what other threads of this program have written
