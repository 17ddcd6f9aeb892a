"""How much two variables tell of each other, from samples: two bounds on their mutual information.

N samples, Dx and Dy numbers of a variable; G groups of variables, such as tokens, or (blocks, tokens).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmeeto.errors import UserError

ESTIMATORS = ("donsker-varadhan", "infonce")
_MOST = 2048  # held-out samples that InfoNCE tells apart at once; it cannot see more than the logarithm of that
_SHUFFLES = 8  # of the held-out samples, for the product of the marginals
_EMBEDDING = 16  # numbers that say which group a sample is of
_CODE = 128  # numbers that InfoNCE's critic makes of either variable


@dataclass(frozen=True)
class Settings:
    """How the networks are trained (the defaults are the paper's, for both estimators).

    Args:
        steps: of AdamW.
        batch_size: samples a step.
        lr: learning rate.
        hidden: widths of the network's layers.
        dropout: of Donsker-Varadhan's network; InfoNCE's has none.
        ema: rate of the moving average in the denominator of Donsker-Varadhan's gradient (MINE).
        held_out: share of the samples that the bounds are evaluated on, and the network never sees.
        seed: of the split, the networks and the batches.
    """

    steps: int = 1000
    batch_size: int = 256
    lr: float = 1e-4
    hidden: tuple[int, ...] = (1024, 512, 256)
    dropout: float = 0.5
    ema: float = 0.9
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        right = (
            self.steps >= 1
            and self.batch_size >= 2
            and self.lr > 0
            and 0 <= self.dropout < 1
            and 0 <= self.ema < 1
            and 0 < self.held_out < 1
            and all(width >= 1 for width in self.hidden)
        )
        if not right:
            raise UserError(
                f"mutual_information: {self}; expected steps 1 or more, batch_size 2 or more, lr above 0, dropout and "
                "ema in [0, 1), held_out in (0, 1)"
            )


def mutual_information(
    x: Tensor,
    y: Tensor,
    estimator: str = "donsker-varadhan",
    *,
    amortised: bool = True,
    settings: Settings | None = None,
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """A lower bound on I(X; Y) in nats, of each group, on held-out samples.

    Args:
        x: (N, ..., Dx): between the samples and the numbers any axes of groups, such as blocks and tokens, or none.
        y: (N, ..., Dy).
        estimator: "donsker-varadhan", as MINE trains it, or "infonce", which is safer and cannot exceed the logarithm
            of the number of held-out samples (2,048 at most).
        amortised: one network for all groups, which is told the group (an embedding for each place on each axis, added
            up); else one a group, trained on its own.
        settings: how to train.
        on_step: called behind each step of a network, to show how far it is.

    Returns:
        The bound of each group, shaped as the axes of groups.

    Raises:
        UserError: shapes that do not go together, or too few samples.

    Source: MINE, arXiv 1801.04062; InfoNCE, arXiv 1807.03748 and 1905.06922.

    Example:
        >>> x = torch.randn(10_000, 20)
        >>> y = 0.574 * x + (1 - 0.574**2) ** 0.5 * torch.randn(10_000, 20)  # 4 nats
        >>> mutual_information(x, y, "infonce")
    """
    settings = settings or Settings()
    if x.ndim < 2 or x.shape[:-1] != y.shape[:-1]:
        raise UserError(
            f"mutual_information: x {tuple(x.shape)} and y {tuple(y.shape)}; expected (N, ..., D), the same but for D"
        )
    if estimator not in ESTIMATORS:
        raise UserError(f"mutual_information: estimator={estimator!r}; expected one of {', '.join(ESTIMATORS)}")
    if not _fits(len(x), settings):
        held_out = int(len(x) * settings.held_out)
        raise UserError(
            f"mutual_information: {len(x)} samples, of which {held_out} are held out, do not fill a batch of "
            f"{settings.batch_size}; give more, or a smaller batch_size"
        )
    axes = x.shape[1:-1]
    if not axes.numel():
        raise UserError(
            f"mutual_information: x {tuple(x.shape)} has no groups; expected one or more on each axis between N and D"
        )
    x, y = (_standard(v).reshape(len(v), axes.numel(), v.shape[-1]) for v in (x, y))
    bound = _donsker_varadhan if estimator == "donsker-varadhan" else _infonce
    estimate = functools.partial(bound, on_step=on_step)
    with torch.random.fork_rng():
        if amortised:
            found = estimate(x, y, settings, axes)
        else:
            each = (slice(g, g + 1) for g in range(axes.numel()))
            found = torch.cat([estimate(x[:, g], y[:, g], settings, torch.Size()) for g in each])
    return found.reshape(axes)


def fewest_samples(settings: Settings) -> int:
    """The fewest samples that can be measured with some settings: the rest of those held out fills a batch."""
    return next(count for count in itertools.count(settings.batch_size) if _fits(count, settings))


def _fits(samples: int, settings: Settings) -> bool:
    held_out = int(samples * settings.held_out)
    return held_out >= 2 and samples - held_out >= settings.batch_size


def _standard(x: Tensor) -> Tensor:
    """Mean 0 and deviation 1 of every number, which changes no mutual information."""
    x = x.float()
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-6)


def _split(x: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Samples to train on and samples to evaluate on."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(settings.seed)).to(x.device)
    count = int(len(x) * settings.held_out)
    return order[count:], order[:count]


def _mlp(sizes: list[int], dropout: float = 0.0, norm: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(sizes[:-2], sizes[1:-1]):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


class _Group(nn.Module):
    """Numbers that say which group a sample is of: an embedding for its place on each axis, added up."""

    def __init__(self, axes: torch.Size) -> None:
        super().__init__()
        self.axes, self.width = axes, _EMBEDDING if axes.numel() > 1 else 0
        self.places = nn.ModuleList(nn.Embedding(length, self.width) for length in axes)

    def forward(self, group: Tensor) -> Tensor:
        """(B,) numbers of groups -> (B, width)."""
        found = torch.zeros(len(group), self.width, device=group.device)
        for length, places in zip(reversed(self.axes), reversed(self.places)):
            found = found + places(group % length)
            group = group // length
        return found


class _Critic(nn.Module):
    """The network of Donsker-Varadhan's bound: a number for a pair of samples of a group."""

    def __init__(self, dx: int, dy: int, axes: torch.Size, settings: Settings) -> None:
        super().__init__()
        self.group = _Group(axes)
        self.net = _mlp([dx + dy + self.group.width, *settings.hidden, 1], settings.dropout)

    def forward(self, x: Tensor, y: Tensor, group: Tensor) -> Tensor:
        """(B, Dx), (B, Dy), (B,) -> (B,)."""
        return self.net(torch.cat([x, y, self.group(group)], -1)).squeeze(-1)


def _train(
    critic: nn.Module, settings: Settings, loss: Callable[[], Tensor], on_step: Callable[[], object] | None
) -> None:
    optimizer = torch.optim.AdamW(critic.parameters(), lr=settings.lr)
    critic.train()
    for _ in range(settings.steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        if on_step is not None:
            on_step()
    critic.eval()


def _donsker_varadhan(
    x: Tensor, y: Tensor, settings: Settings, axes: torch.Size, on_step: Callable[[], object] | None = None
) -> Tensor:
    """E_joint[T] - log E_marginals[exp T], T trained with MINE's gradient; a group's denominator is its own."""
    torch.manual_seed(settings.seed)
    train, held_out = _split(x, settings)
    groups, size = x.shape[1], settings.batch_size
    critic = _Critic(x.shape[2], y.shape[2], axes, settings).to(x.device)
    average = torch.full((groups,), torch.nan, device=x.device)  # the logarithm of each group's moving average

    def loss() -> Tensor:
        samples, others = (train[torch.randint(len(train), (size,), device=x.device)] for _ in range(2))
        group = torch.randint(groups, (size,), device=x.device)
        here = x[samples, group]
        # Both halves in one batch: normalised apart, they would look more alike than they are.
        pairs = y[torch.cat([samples, others]), group.repeat(2)]
        joint, marginal = critic(here.repeat(2, 1), pairs, group.repeat(2)).chunk(2)
        with torch.no_grad():
            _follow(average, marginal, group, settings.ema)
        # The gradient of log E[exp T], with the moving average for E[exp T].
        return (marginal - average[group]).exp().mean() - joint.mean()

    _train(critic, settings, loss, on_step)
    with torch.inference_mode():
        return torch.stack([_bound(critic, x[held_out, g], y[held_out, g], g) for g in range(groups)])


def _follow(average: Tensor, values: Tensor, group: Tensor, rate: float) -> None:
    """Move the logarithms of the averages (G,) of exp(values) towards those of a batch, in place."""
    for g in group.unique():
        mine = values[group == g]
        now = mine.logsumexp(0) - math.log(len(mine))
        old = now if average[g].isnan() else average[g]
        average[g] = torch.logaddexp(old + math.log(rate), now + math.log1p(-rate)) if rate else now


def _bound(critic: nn.Module, x: Tensor, y: Tensor, group: int) -> Tensor:
    """Donsker-Varadhan's bound on samples (n, Dx) and (n, Dy) of a group."""
    told = torch.full((len(x),), group, device=x.device)
    shifts = [int(len(x) * (i + 1) / (_SHUFFLES + 1)) or 1 for i in range(_SHUFFLES)]  # no sample meets itself
    marginal = torch.cat([critic(x, y.roll(shift, 0), told) for shift in shifts])
    return critic(x, y, told).mean() - (marginal.logsumexp(0) - math.log(len(marginal)))


class _Codes(nn.Module):
    """InfoNCE's critic: the product of a code of x and a code of y, so that all pairs are cheap."""

    def __init__(self, dx: int, dy: int, axes: torch.Size, settings: Settings) -> None:
        super().__init__()
        self.group = _Group(axes)
        more = self.group.width
        width = settings.hidden[-1:] or (256,)
        self.x = nn.ModuleList([_mlp([dx + more, *width, _CODE], norm=False), nn.Linear(dx + more, _CODE)])
        self.y = nn.ModuleList([_mlp([dy + more, *width, _CODE + 1], norm=False), nn.Linear(dy + more, _CODE + 1)])

    def forward(self, x: Tensor, y: Tensor, group: int) -> Tensor:
        """(B, Dx), (B, Dy) -> (B, B) for every x with every y."""
        told = self.group(torch.full((len(x),), group, device=x.device))
        x, y = torch.cat([x, told], -1), torch.cat([y, told], -1)
        a, b = (sum(part(v) for part in parts) for v, parts in ((x, self.x), (y, self.y)))
        return a @ b[:, :-1].T / math.sqrt(_CODE) + b[:, -1]


def _infonce(
    x: Tensor, y: Tensor, settings: Settings, axes: torch.Size, on_step: Callable[[], object] | None = None
) -> Tensor:
    """log K less the cross entropy of finding a sample's own y among K; ten times the rate, for it is stable."""
    torch.manual_seed(settings.seed)
    train, held_out = _split(x, settings)
    groups, size = x.shape[1], settings.batch_size
    critic = _Codes(x.shape[2], y.shape[2], axes, settings).to(x.device)

    def loss() -> Tensor:
        samples = train[torch.randperm(len(train), device=x.device)[:size]]
        group = int(torch.randint(groups, ()))
        scores = critic(x[samples, group], y[samples, group], group)
        return F.cross_entropy(scores, torch.arange(size, device=x.device))

    _train(critic, dataclasses.replace(settings, lr=10 * settings.lr), loss, on_step)
    found = []
    with torch.inference_mode():
        for group in range(groups):
            parts = [part for part in held_out.split(_MOST) if len(part) == min(_MOST, len(held_out))]
            bounds = []
            for part in parts:
                scores = critic(x[part, group], y[part, group], group)
                nll = F.cross_entropy(scores, torch.arange(len(part), device=x.device))
                bounds.append(math.log(len(part)) - nll)
            found.append(torch.stack(bounds).mean())
    return torch.stack(found)


def gaussians(nats: float, dimensions: int, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Samples (N, D) of two Gaussian vectors of a known mutual information, to check an estimator on.

    Args:
        nats: of mutual information, shared evenly by the dimensions.
        dimensions: D, each correlated with its own counterpart alone.
        samples: N.
        seed: of the samples.
    """
    correlation = math.sqrt(-math.expm1(-2 * nats / dimensions))
    draw = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(samples, dimensions, generator=draw) for _ in range(2))
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise
