"""The bidirectional Mamba mixer of Vision Mamba ("bimamba v2")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmeeto.merge import SSMFeatures
from rmeeto.ops import Direction, bidirectional_conv1d, bidirectional_scan, selective_scan
from rmeeto.ops.mixer import one_function
from rmeeto.ops.mixer_weights import Weights

_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4


class BiMamba(nn.Module):
    """Scan the tokens forwards and backwards with input-dependent parameters, gate, and project.

    One input projection gives x and z. Each direction has its own convolution, x_proj, dt_proj, A and D; the two
    gated outputs are added (``average``: then halved) before the one output projection. The backward direction
    scans from the last token, so nothing is flipped.

    Args:
        d_model: channels C of the tokens.
        d_state: states N per channel.
        d_conv: kernel of the causal convolution.
        expand: inner channels D = expand * d_model.
        dt_rank: rank of the step-size projection; ``auto`` is ceil(d_model / 16).
        average: halve the sum of the directions (Vim) or not (VideoMamba).
        released_flip: combine B, C, delta with the backward direction's channels reversed, as the released code.

    Source: Mamba, arXiv 2312.00752; Vision Mamba, arXiv 2401.09417, algorithm 1.
    """

    metrics = ("X", "B", "C", "delta")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        average: bool = True,
        released_flip: bool = False,
    ) -> None:
        super().__init__()
        inner = expand * d_model
        self.d_model, self.d_state, self.d_inner = d_model, d_state, inner
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.average, self.released_flip = average, released_flip
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        for suffix in ("", "_b"):
            self._add_direction(suffix, inner, d_state, d_conv)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def _add_direction(self, suffix: str, inner: int, d_state: int, d_conv: int) -> None:
        states = torch.arange(1, d_state + 1, dtype=torch.float32)
        a_name = "A_b_log" if suffix else "A_log"
        setattr(self, a_name, nn.Parameter(states.log().repeat(inner, 1)))
        setattr(self, "D" + suffix, nn.Parameter(torch.ones(inner)))
        conv = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        dt_proj = nn.Linear(self.dt_rank, inner)
        nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        # Steps start log-uniform in [_DT_MIN, _DT_MAX]; the bias is softplus's inverse of that.
        step = torch.exp(torch.rand(inner) * math.log(_DT_MAX / _DT_MIN) + math.log(_DT_MIN)).clamp(min=_DT_FLOOR)
        dt_proj.bias.data.copy_(step + torch.log(-torch.expm1(-step)))
        self.add_module("conv1d" + suffix, conv)
        self.add_module("x_proj" + suffix, nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False))
        self.add_module("dt_proj" + suffix, dt_proj)

    def forward(self, x: Tensor, return_ssm: bool = False) -> Tensor | tuple[Tensor, SSMFeatures]:
        """Mix tokens.

        Args:
            x: (B, L, C).
            return_ssm: also return the `SSMFeatures` (no gradient flows through them).

        Returns:
            (B, L, C), or that and the features.
        """
        xz = self.in_proj(x)
        mix = one_function(xz) if self._is_plain() else None
        if mix is None:
            u, z = xz.chunk(2, dim=-1)
            forward, backward = self._directions(u)
            y = bidirectional_scan(forward, backward, z, self.average)
        else:
            y, (forward, backward) = mix(xz, *self._weights(), self.average)
        out = self.out_proj(y)
        if not return_ssm:
            return out
        steps = (d.delta if d.dt_weight is None else F.linear(d.delta, d.dt_weight) for d in (forward, backward))
        pairs = (forward.B, backward.B), (forward.C, backward.C), steps
        return out, SSMFeatures(*(self._combine(a.detach(), b.detach()) for a, b in pairs))

    def scans(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look inside: what the scans are given, and what each direction makes of it, gated.

        Args:
            x: (B, L, C).

        Returns:
            (B, L, D) three times: the projected tokens, the forward scan, the backward scan. `forward` is ``out_proj``
            of the sum of the two (halved under ``average``).
        """
        u, z = self.in_proj(x).chunk(2, dim=-1)
        directions = (direction.plain() for direction in self._directions(u))
        outputs = (
            selective_scan(d.u.mT, d.delta.mT, d.A, d.B.mT, d.C.mT, d.D, z.mT, d.delta_bias, reverse=reverse).mT
            for d, reverse in zip(directions, (False, True))
        )
        return u, *outputs

    def macs(self, num_tokens: int, directions: int = 2) -> dict[str, int]:
        """Multiply-accumulates of one sample, by part."""
        return scan_macs(self, num_tokens, directions)

    def _is_plain(self) -> bool:
        """Whether what lies between the outer projections is no more than its weights."""
        projections = (self.x_proj, self.x_proj_b, self.dt_proj, self.dt_proj_b)
        return _are_plain(nn.Linear, *projections) and _are_plain(nn.Conv1d, self.conv1d, self.conv1d_b)

    def _weights(self) -> tuple[Weights, Weights]:
        def of(conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor) -> Weights:
            return Weights(conv.weight, conv.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, A_log, D)

        return (
            of(self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D),
            of(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b),
        )

    def _directions(self, u: Tensor) -> tuple[Direction, Direction]:
        """What the scans forwards and backwards read."""
        if _are_plain(nn.Conv1d, self.conv1d, self.conv1d_b):
            forward, backward = bidirectional_conv1d(
                u, self.conv1d.weight, self.conv1d.bias, self.conv1d_b.weight, self.conv1d_b.bias
            )
        else:
            forward, backward = _convolved(self.conv1d, u), _convolved(self.conv1d_b, u.flip(1)).flip(1)
        return (
            self._direction(forward, self.x_proj, self.dt_proj, self.A_log, self.D),
            self._direction(backward, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b),
        )

    def _direction(self, u: Tensor, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor) -> Direction:
        dt, B, C = x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if not _are_plain(nn.Linear, self.dt_proj, self.dt_proj_b):
            return Direction(u, dt_proj(dt), A_log, B, C, D, log_A=True)
        # The scan itself projects the step size, adds the bias and takes the exponential of A.
        return Direction(u, dt, A_log, B, C, D, dt_proj.bias, dt_proj.weight, log_A=True)

    def _combine(self, forward: Tensor, backward: Tensor) -> Tensor:
        if self.released_flip:
            backward = backward.flip(1, 2)
        total = forward + backward
        return total / 2 if self.average else total


def _are_plain(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Whether modules are no more than their weights: no adapter, not quantised, nobody looks on.

    Else they are called, for what they compute counts.
    """
    return all(
        type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks for module in modules
    )


def _convolved(conv: nn.Module, u: Tensor) -> Tensor:
    """(B, L, D) by a causal convolution that is padded on both sides, and SiLU."""
    return F.silu(conv(u.mT)[..., : u.shape[1]]).mT


def linear_weights(module: nn.Module) -> int:
    """How many a linear layer has; of a quantised one, whose weight is no tensor, too."""
    weight = getattr(module, "weight", None)
    return weight.numel() if isinstance(weight, Tensor) else module.in_features * module.out_features


def scan_macs(mixer: nn.Module, num_tokens: int, directions: int = 2) -> dict[str, int]:
    """Multiply-accumulates of a Mamba mixer with the official parameter names, of one sample, by part."""
    inner, state = mixer.d_inner, mixer.d_state
    kernel = mixer.conv1d.kernel_size[0]
    return {
        "in_proj": num_tokens * linear_weights(mixer.in_proj),
        "conv": directions * (num_tokens + kernel - 1) * inner * kernel,  # with the padding
        "x_proj": directions * num_tokens * linear_weights(mixer.x_proj),
        "dt_proj": directions * num_tokens * linear_weights(mixer.dt_proj),
        "scan": directions * (9 * num_tokens * inner * state + 2 * num_tokens * inner),
        "out_proj": num_tokens * linear_weights(mixer.out_proj),
    }
