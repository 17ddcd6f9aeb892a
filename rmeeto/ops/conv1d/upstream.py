"""The convolution of the ``causal_conv1d`` package, where its compiled extension really imports."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor

from rmeeto.ops.backend import BackendUnavailable


def load() -> Callable:
    """`bidirectional_conv1d` for tensors on a GPU.

    Raises:
        BackendUnavailable: the package or its extension does not import.
    """
    try:
        importlib.import_module("causal_conv1d_cuda")
        causal_conv1d_fn = importlib.import_module("causal_conv1d").causal_conv1d_fn
    except Exception as error:  # a broken extension can raise anything
        raise BackendUnavailable(f"causal_conv1d's compiled extension does not import: {error}") from error

    def one_way(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv1d_fn(x, weight.squeeze(1).to(x.dtype), bias.to(x.dtype), activation="silu")

    def bidirectional_conv1d(
        x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Same function as `naive_bidirectional_conv1d`; upstream is channel-major and knows one direction: flips."""
        x = x.transpose(1, 2)
        forward = one_way(x.contiguous(), weight, bias)
        backward = one_way(x.flip(-1).contiguous(), weight_b, bias_b).flip(-1)
        return forward.transpose(1, 2), backward.transpose(1, 2)

    return bidirectional_conv1d
