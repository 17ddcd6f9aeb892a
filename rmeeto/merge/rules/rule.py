"""A merging rule: a function `(metric, r, tokens) -> MergePlan`, and what its signature says that it asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from rmeeto.autocast import full_precision
from rmeeto.merge.plan import MergePlan
from rmeeto.merge.tokens import Tokens

RuleFunction = Callable[..., MergePlan]
# What a model can hand to a rule beside the metric: the output of the last mixer (or attention), the residual stream
# with it added, how many original tokens each token stands for, its cell, and the mixer's or attention's own tensors.
FEATURES = ("output", "hidden", "size", "cell", "B", "C", "delta", "Q", "K", "V")
# Settings of a `MergeConfig` that are the rule's own.
OPTIONS = ("distance", "neighbour", "window")


def all_pairs(tokens: Tokens, width: int, **_: object) -> int:
    """Norms, and the products of one half of the tokens with the other, as the authors count them."""
    return 6 * tokens.num * width + width * tokens.num**2 // 2


def cost(macs: Callable[..., int]) -> Callable[[RuleFunction], RuleFunction]:
    """Say what a rule costs: ``macs(tokens, width, r=r, **options)`` multiply-accumulates.

    ``width`` is the metric's, ``options`` are the settings that the rule takes. Without it, `count_flops` takes a rule
    to compare all pairs (`all_pairs`).
    """

    def declare(function: RuleFunction) -> RuleFunction:
        function.macs = macs  # type: ignore[attr-defined]
        return function

    return declare


def ordered(function: RuleFunction) -> RuleFunction:
    """Say that a rule chooses its own sources (`Tokens.pair`), so that tokens have to keep their order."""
    function.ordered = True  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True)
class Rule:
    """A rule's function and what it asks for, by the names of its keyword parameters.

    Attributes:
        name: as settings and run folders write it; None for a function that has no importable name.
        function: called as ``function(metric, r, tokens, **features, **options)``.
        needs: the `FEATURES` among its parameters.
        options: the `OPTIONS` among its parameters.
    """

    name: str | None
    function: RuleFunction
    needs: tuple[str, ...]
    options: tuple[str, ...]

    def plan(
        self,
        metric: Tensor,
        r: int,
        tokens: Tokens,
        given: Mapping[str, Any] | None = None,
        features: Callable[[str], Tensor | None] = lambda _: None,
        function: RuleFunction | None = None,
    ) -> MergePlan:
        """The rule's plan, in fp32 and without gradients.

        Args:
            metric: (B, L, C).
            r: tokens to remove, before any clamp.
            tokens: their layout.
            given: settings, of which the rule's options are taken.
            features: gives a (B, L, ...) tensor that the rule needs, by its name.
            function: in place of the rule's, the same on kernels.

        Raises:
            ValueError: a metric or a plan of another shape.
        """
        batch = _check_metric(metric, tokens)
        r = tokens.limit(r)
        if r == 0:
            return tokens.identity(batch, metric.device)
        arguments = {name: given[name] for name in self.options if given and name in given}
        with torch.no_grad(), full_precision(metric.device):
            for name in self.needs:
                feature = tokens.cells(metric.device) if name == "cell" else features(name)
                if feature is None:
                    raise ValueError(f"match: rule {self.name!r} asks for {name}; give it in features")
                arguments[name] = feature.detach()
            plan = (function or self.function)(metric.detach(), r, tokens, **arguments)
        if not isinstance(plan, MergePlan) or plan.source.shape != (batch, r) or plan.num_tokens != tokens.num - r:
            raise ValueError(
                f"rule {self.name or self.function!r} gave {_describe(plan)}; expected a MergePlan that removes {r} of "
                f"{tokens.num} tokens in each of {batch} samples, such as tokens.plan(score, pick, r) makes"
            )
        return plan

    @property
    def ordered(self) -> bool:
        """Whether it is defined only for tokens that keep their order."""
        return bool(self._declared("ordered", False))

    def macs(self, tokens: Tokens, width: int, r: int, given: Mapping[str, Any]) -> int:
        """Multiply-accumulates of one matching of ``tokens`` that removes r, on a metric of ``width`` channels."""
        options = {name: given[name] for name in self.options}
        return int(self._declared("macs", all_pairs)(tokens, width, r=tokens.limit(r), **options))

    def _declared(self, name: str, default: Any) -> Any:
        function = self.function.func if isinstance(self.function, partial) else self.function
        return getattr(function, name, default)


@cache
def read_rule(function: RuleFunction, name: str | None) -> Rule:
    """A function as a rule.

    Raises:
        ValueError: its parameters are not those of a rule.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ValueError(f"rule={function!r}; expected a function (metric, r, tokens) -> MergePlan") from None
    flexible = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    others = [p for p in parameters[3:] if p.kind not in flexible]
    known = {*FEATURES, *OPTIONS}
    strange = [p.name for p in others if p.name not in known and p.default is inspect.Parameter.empty]
    if len(parameters) < 3 or strange:
        raise ValueError(
            f"rule {name or function!r} has the parameters {[p.name for p in parameters]}; expected metric, r, tokens, "
            f"then any of {', '.join(FEATURES + OPTIONS)}, and others only with a default"
        )
    names = [p.name for p in others]
    return Rule(
        name,
        function,
        tuple(feature for feature in FEATURES if feature in names),
        tuple(option for option in OPTIONS if option in names),
    )


def _check_metric(metric: Tensor, tokens: Tokens) -> int:
    if metric.ndim != 3:
        raise ValueError(f"match: metric has shape {tuple(metric.shape)}; expected (batch, tokens, channels)")
    batch, index = metric.shape[0], tokens.class_index
    if isinstance(index, Tensor) and index.shape != (batch,):
        raise ValueError(f"match: class_index has shape {tuple(index.shape)}; expected ({batch},), one per sample")
    return batch


def _describe(plan: object) -> str:
    if not isinstance(plan, MergePlan):
        return f"a {type(plan).__name__}"
    batch, r = plan.source.shape
    return f"a plan that removes {r} of {plan.num_tokens + r} tokens in each of {batch} samples"
