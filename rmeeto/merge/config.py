"""What to merge, where and how: the one settings object of the method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from rmeeto.merge.plan import MODES
from rmeeto.merge.released import RELEASED
from rmeeto.merge.rules import RULES, Rule, RuleFunction, find_rule
from rmeeto.merge.similarity import DISTANCES
from rmeeto.merge.tokens import CLASS_POSITIONS

METRICS = ("X", "B", "C", "delta", "Q", "K", "V")
SSM = ("B", "C", "delta")  # of these, what a state-space mixer hands out
SHUFFLES = ("random", "odd-even")


@dataclass(frozen=True)
class MergeConfig:
    """Settings of token merging, validated when made.

    Args:
        r: tokens removed by each merge. An int; or a float, the share of the tokens that enter it (rounded, so that
            shapes stay static); or a sequence with one int per merging block; or ``(r, inflection)`` with a float
            inflection in [-1, 1]: the removals then change linearly over the blocks from ``r * (1 - inflection)`` to
            ``r * (1 + inflection)``. A merge never removes more than half of the tokens: a larger r is clamped to that.
        interval: merge at the start of every ``interval``-th block (never of block 0).
        odd: merge at blocks with ``(i + 1) % interval == 0`` instead of ``i % interval == 0``.
        rule: which tokens merge into which: a name in `rmeeto.merge.RULES`, ``package.module:function``, or a function
            ``(metric, r, tokens) -> MergePlan`` (`rmeeto.merge.rules` says what else it may ask for).
        metric: tensor that similarity is measured on: ``X`` (hidden states of the previous mixer), ``B``, ``C``,
            ``delta`` (its state-space parameters); for Transformers also ``Q``, ``K``, ``V``.
        distance: ``cosine``, or the negative ``l1`` / ``l2`` distance of the normalised metric.
        mode: ``sum`` (size-weighted average), ``mean``, ``amax`` or ``amin``.
        neighbour: pair each source with its k-th most similar destination.
        prune: drop the sources instead of merging them (``mode`` then has nothing to act on).
        keep_order: put the surviving tokens back in their original order.
        class_position: where the class token goes: ``proportional`` (``floor(p * (L - r) / L)``), or ``exact``
            (behind the tokens that really survived before it, sample by sample).
        final_tokens: the last merge removes what is needed to leave this many tokens, class token included
            (at most half of them; none if there are fewer already).
        shuffle: shuffle before each merge: ``random`` (a share of the tokens) or ``odd-even``
            (even positions first, then odd ones).
        shuffle_rate: share of the tokens that ``shuffle="random"`` permutes, in [0, 1]; 0, which the released code was
            recorded with, leaves them in order.
        window: ``(t, h, w)``, of the rule ``window``, which ``exact`` then stands for: sources look only at
            destinations fewer than t frames, h rows and w columns away (images are one frame), at a cost of O(L)
            instead of O(L^2). Needs ordered tokens and ``neighbour=1``.
        released_flip: metrics B, C and delta with the backward direction flipped along the channels as well, as
            the released code does; without effect on metric X.

    Raises:
        ValueError: a value of another type or out of range, one that has no effect beside the others (a shuffle_rate
            that no shuffle uses, a distance that the rule does not read), a window beside what excludes it, or a rule
            that cannot be found.

    Source: R-MeeTo, arXiv 2412.12496; defaults are the paper's.
    """

    r: int | float | tuple[int, ...] | tuple[int, float] = 0
    interval: int = 2
    odd: bool = False
    metric: str = "X"
    distance: str = "cosine"
    mode: str = "sum"
    neighbour: int = 1
    prune: bool = False
    keep_order: bool = True
    class_position: str = "proportional"
    final_tokens: int | None = None
    shuffle: str | None = None
    shuffle_rate: float = 0.0
    released_flip: bool = False
    window: tuple[int, int, int] | None = None
    rule: str | RuleFunction = "exact"

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        self._check_r()
        self._check_window()
        for name in ("odd", "prune", "keep_order", "released_flip"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False")
        for name in ("interval", "neighbour", "final_tokens"):
            value = getattr(self, name)
            if not (_is_int(value) and value >= 1) and (name, value) != ("final_tokens", None):
                self._refuse(name, "an integer >= 1")
        known: dict[str, Collection[str | None]] = {"metric": METRICS, "distance": DISTANCES, "mode": MODES}
        known |= {"class_position": CLASS_POSITIONS, "shuffle": (None, *SHUFFLES)}
        for name, values in known.items():
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in values:
                self._refuse(name, f"one of {values}")
        if not _is_number(self.shuffle_rate) or not 0.0 <= self.shuffle_rate <= 1.0:
            self._refuse("shuffle_rate", "a share in [0, 1]")
        if self.shuffle_rate and self.shuffle != "random":
            raise ValueError(
                f"MergeConfig: shuffle_rate={self.shuffle_rate} has no effect with shuffle={self.shuffle!r}; "
                'set shuffle="random"'
            )
        self._check_rule()

    def _refuse(self, name: str, expected: str) -> None:
        raise ValueError(f"MergeConfig: {name}={getattr(self, name)!r}; expected {expected}")

    def _check_rule(self) -> None:
        if self.rule == "window" and self.window is None:
            raise ValueError('MergeConfig: rule="window" without its window=(frames, rows, columns)')
        rule = find_rule("window" if self.window is not None and self.rule == "exact" else self.rule)
        if callable(self.rule) and rule.name in RULES:
            object.__setattr__(self, "rule", rule.name)
        defaults = {"distance": "cosine", "neighbour": 1, "window": None}
        for name, default in defaults.items():
            if getattr(self, name) != default and name not in rule.options:
                raise ValueError(
                    f"MergeConfig: {name}={getattr(self, name)!r} has no effect with rule={rule.name or self.rule!r}, "
                    "which does not take it; leave it out"
                )
        stays = [name for name in rule.needs if name in SSM]
        if self.shuffle is not None and stays:
            raise ValueError(
                f"MergeConfig: shuffle={self.shuffle!r} with rule={rule.name or self.rule!r}, which asks for "
                f"{stays[0]}: the last scan's is in the order before the shuffle; use another rule"
            )
        if rule.ordered and not self.keep_order:
            raise ValueError(
                f"MergeConfig: keep_order=False with rule={rule.name or self.rule!r}, which chooses its own "
                "sources, so that no other order is defined; keep the order (--if_order)"
            )
        object.__setattr__(self, "_rule", rule)  # found once: a compiled forward pass looks nothing up

    @property
    def matching(self) -> Rule:
        """The rule, with what its function asks for."""
        return self._rule  # type: ignore[attr-defined]

    @property
    def options(self) -> dict[str, Any]:
        """The settings that the rule takes."""
        return {name: getattr(self, name) for name in self.matching.options}

    def _check_r(self) -> None:
        r, many = self.r, isinstance(self.r, tuple)
        if self.inflection is not None:
            if not (_is_int(r[0]) and r[0] >= 0 and -1.0 <= self.inflection <= 1.0):  # type: ignore[index]
                self._refuse("r", "(r >= 0, inflection in [-1.0, 1.0])")
        elif many and r:
            if not all(_is_int(value) and value >= 0 for value in r):  # type: ignore[union-attr]
                self._refuse(
                    "r",
                    "integers of 0 or more, one per merging block (an inflection is written as a float: (8, -1.0))",
                )
        elif isinstance(r, float):
            if not 0.0 <= r <= 0.5:
                self._refuse("r", "a share of the tokens, 0.0 to 0.5")
        elif not _is_int(r):
            self._refuse("r", "an int, a share (0.05), one int per merging block, or (r, inflection)")
        elif r < 0:  # type: ignore[operator]
            self._refuse("r", "the number of tokens to remove, 0 or more")

    def _check_window(self) -> None:
        window = self.window
        if window is None:
            return
        sides = window if isinstance(window, tuple) else ()
        if len(sides) != 3 or not all(_is_int(n) and n >= 1 for n in sides):
            self._refuse("window", "frames, rows and columns, each 1 or more, such as (2, 3, 3)")
        if window == (1, 1, 1):
            raise ValueError("MergeConfig: window=(1, 1, 1) holds no token but the source; make it larger")
        if self.shuffle is not None or self.keep_order is not True or self.neighbour != 1:
            raise ValueError(
                f"MergeConfig: window={window} with keep_order={self.keep_order}, shuffle={self.shuffle!r}, "
                f"neighbour={self.neighbour}; a window needs ordered tokens, no shuffle, and neighbour=1"
            )

    @property
    def inflection(self) -> float | None:
        """Slope of r over the blocks, or None when r is an int or a list."""
        is_pair = isinstance(self.r, tuple) and len(self.r) == 2 and isinstance(self.r[1], float)
        return float(self.r[1]) if is_pair else None  # type: ignore[index]

    @property
    def is_active(self) -> bool:
        """Whether a model differs from the dense one: a merge can remove a token, or tokens are shuffled."""
        values = self.r if isinstance(self.r, tuple) else (self.r,)
        removes = values[0] > 0 if self.inflection is not None else any(value > 0 for value in values)
        shuffles = self.shuffle == "odd-even" or self.shuffle_rate > 0
        return removes or self.final_tokens is not None or shuffles

    @property
    def needs_ssm(self) -> bool:
        """Whether a merge looks at the mixer's own parameters, as the metric or because the rule asks for them."""
        return any(name in SSM for name in (self.metric, *self.matching.needs))

    def check_metrics(self, model: str, kind: str, metrics: Collection[str], has_cells: bool = False) -> None:
        """Refuse a metric or a rule that asks for what a model does not have.

        Args:
            model: its name, for the error.
            kind: of model, in words.
            metrics: of `METRICS`, those that it has.
            has_cells: whether it knows the cell of the grid that each token stands at.

        Raises:
            ValueError: it has not.
        """
        if self.metric not in metrics:
            raise ValueError(f"{model}: metric={self.metric!r}; {kind} has {_listed(metrics)}")
        lacking = [name for name in self.matching.needs if name in METRICS and name not in metrics]
        lacking += ["cell"] * ("cell" in self.matching.needs and not has_cells)
        if lacking:
            raise ValueError(
                f"{model}: rule={self.matching.name!r} asks for {lacking[0]}, which it does not have; use another rule"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; ``MergeConfig(**d)`` gives the same settings back, also through JSON.

        Raises:
            ValueError: a rule that no name leads to (a lambda, a partial function).
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if callable(self.rule):
            values["rule"] = self.matching.name
        if values["rule"] is None:
            raise ValueError(
                f"MergeConfig: rule={self.rule!r} has no name to be written by; give it one in a module: "
                "rule='package.module:function'"
            )
        for name in ("r", "window"):
            values[name] = list(values[name]) if isinstance(values[name], tuple) else values[name]
        return values

    @classmethod
    def from_released(cls, merge_para: dict[str, Any], **overrides: Any) -> MergeConfig:
        """Settings from the released code's ``merge_para`` dict.

        Args:
            merge_para: keys ``num_prune, merge_interval, if_merge_odd, metric, distance, merge_mode, choose``
                (``max``, ``3c``, ...), ``if_prune, if_order, if_shuffle, shuffle_rate``; ``compare`` (final tokens
                ``197 - 11 * compare``, the released last-merge override) only where it is given.
            overrides: fields that win over the dict.

        Raises:
            ValueError: an unknown key or value.
        """
        fields: dict[str, Any] = {}
        for key, value in merge_para.items():
            if key not in RELEASED:
                raise ValueError(f"merge_para: unknown key {key!r}; expected some of {', '.join(sorted(RELEASED))}")
            field, read = RELEASED[key]
            fields[field] = value if read is None else read(value)
        return cls(**{**fields, **overrides})


def _listed(names: Collection[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Python's own numbers for NumPy's and torch's, tuples for lists and arrays."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
