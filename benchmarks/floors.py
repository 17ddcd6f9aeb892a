"""The least time a GPU needs for a model's forward pass, from bytes, multiplications and exponentials.

Each operator reads its inputs and writes its outputs once, and takes the longest of three times: bytes over memory
bandwidth, matrix products over the tensor cores' rate, exponentials over the special function units' rate. The
operators are cut as our kernels are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HALF, FULL = 2, 4  # bytes of bf16, of the fp32 residual stream
STATES, KERNEL = 16, 4


@dataclass(frozen=True)
class Rates:
    """What a GPU can do in a second.

    Args:
        bytes: read or written in device memory, as a large copy measures it.
        flops: of bf16 matrix products, as a large product measures them.
        exps: 16 a clock and multiprocessor.
    """

    bytes: float
    flops: float
    exps: float


@dataclass(frozen=True)
class Work:
    """What one launch has to do."""

    name: str
    bytes: float
    flops: float = 0.0
    exps: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """The longest of the three times."""
        return max(self.bytes / rates.bytes, self.flops / rates.flops, self.exps / rates.exps)


def scan(tokens: int, embed: int) -> Work:
    """Both directions in one: u of each, z, the projections of each, one y. ``tokens`` is batch times length."""
    inner, projected = 2 * embed, -(-embed // 16) + 2 * STATES
    moved = HALF * (4 * inner + 2 * projected)
    exps = 2 * inner * (STATES + 1) + inner  # and one for softplus, one for the gate
    return Work("scan", tokens * moved, exps=tokens * exps)


def conv(tokens: int, embed: int) -> Work:
    """x once, both directions' outputs; SiLU is an exponential and a reciprocal."""
    inner = 2 * embed
    return Work("conv", tokens * HALF * 3 * inner, exps=tokens * 4 * inner)


def norm(tokens: int, embed: int) -> Work:
    """hidden and residual in, residual and normalised tokens out."""
    return Work("add_norm", tokens * embed * (HALF + FULL + FULL + HALF))


def merge(batch: int, length: int, r: int, embed: int) -> list[Work]:
    """Scores of half the tokens against the other half; then one pass over hidden and residual."""
    pairs = (length // 2) * ((length - 1) // 2)
    kept = batch * (length - r)
    return [
        Work("match", batch * length * embed * HALF, flops=2.0 * batch * pairs * embed),
        Work("merge", batch * length * embed * (HALF + FULL) + kept * embed * FULL),
    ]


def _product(name: str, rows: int, inputs: int, outputs: int) -> Work:
    return Work(name, HALF * (rows * (inputs + outputs) + inputs * outputs), flops=2.0 * rows * inputs * outputs)


def block(batch: int, length: int, embed: int) -> Iterator[Work]:
    """The launches of one block's mixer and norm."""
    tokens, inner, rank = batch * length, 2 * embed, -(-embed // 16)
    yield norm(tokens, embed)
    yield _product("in_proj", tokens, embed, 2 * inner)
    for _ in range(2):
        yield _product("x_proj", tokens, inner, rank + 2 * STATES)
    yield _product("out_proj", tokens, inner, embed)
    yield conv(tokens, embed)
    yield scan(tokens, embed)


def forward(batch: int, counts: list[int], embed: int, rates: Rates) -> float:
    """Seconds of a forward pass whose blocks see ``counts`` tokens (patch embedding and head left out)."""
    work: list[Work] = []
    for before, length in zip([counts[0], *counts], counts):
        if length < before:
            work += merge(batch, before, before - length, embed)
        work += block(batch, length, embed)
    return sum(item.seconds(rates) for item in work)
