"""The weights that a mixer has between its two linear layers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Weights(NamedTuple):
    """One direction's: D channels, K taps, R rank, N states.

    Attributes:
        taps, bias: (D, 1, K), (D,) of the convolution.
        x_proj: (R + 2 N, D).
        dt_weight, dt_bias: (D, R), (D,).
        A_log: (D, N), log(-A).
        D: (D,).
    """

    taps: Tensor
    bias: Tensor
    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
