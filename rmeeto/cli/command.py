"""A task's command line: flags made from its settings, with the released recipes' names."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmeeto.cli.config import TaskConfig
from rmeeto.cli.flags import Flag, FlagParser, Ignored
from rmeeto.cli.merging import MERGE_FLAGS, Effects, canonical, merge_settings
from rmeeto.engine.distill import DistillConfig
from rmeeto.engine.record import read_json
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig

TITLES = {"optim": "training", "distill": "distillation"}
MIXING = ("mixup_prob", "mixup_switch_prob", "mixup_mode")
WEIGHTS = ("model_pth", "weights", "delete_head", "teacher", "teacher_pth", "nb_classes")


@dataclass(frozen=True)
class Command:
    """What a task says about its command line.

    Args:
        prog: how it is started.
        description: what it does.
        config: the class of its settings.
        models: names of its models.
        aliases: released name -> (our name, what it fixes).
        keep_order: whether merged tokens keep their order where --if_order is not given, as in the released code.
        training: settings of `data` that only training reads.
        augmenting: those that --augment False switches off.
        effects: what has no effect beside the other settings, apart from what both tasks share.
        smoke: the same run for a few batches.
        flags: flags with names of their own.
        ignored: flags of the released code without effect.
        refused: flags of the released code that ask for what there is not, and what there is instead.
        adjust: changes the values that were given, by section.field, in the light of the starting point; returns
            lines on what it has done.
    """

    prog: str
    description: str
    config: type[TaskConfig]
    models: Mapping[str, Any]
    aliases: Mapping[str, tuple[str, str]]
    keep_order: bool
    training: Sequence[str]
    augmenting: Sequence[str]
    effects: Callable[[Any], Effects]
    smoke: Callable[[Any], Any]
    flags: Mapping[str, Flag] = field(default_factory=dict)
    ignored: Mapping[str, Ignored] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    adjust: Callable[[dict[str, Any], dict[str, Any]], list[str]] = lambda given, start: []

    def parser(self) -> FlagParser:
        """All flags."""
        parser = FlagParser(self.prog, self.description, self.ignored)
        parser.add_argument(
            "--dry_run", action="store_true", help="print the resolved settings as JSON, run nothing"
        )
        parser.add_argument(
            "--config", metavar="FILE", help="start from a run's config.json; flags override it"
        )
        for section, config_class in self.config.sections().items():
            parser.add_section(section, config_class, TITLES.get(section, section))
            if section == "model":
                parser.add_flags(MERGE_FLAGS, "merging")
        parser.add_flags(self.flags, "more names, as in the released scripts")
        for name in self.refused:
            parser.add_argument(f"--{name}", dest=f"refused.{name}", nargs="*", help=argparse.SUPPRESS)
        return parser

    def parse(self, argv: Sequence[str]) -> tuple[Any, bool, list[str]]:
        """Read a command line (without the program's name).

        Returns:
            The settings; whether only a dry run is wanted; lines about flags without effect.

        Raises:
            UserError: an unknown flag, a value out of range, or a flag that the others leave without effect.
        """
        given, written, notices = self.parser().read(argv)
        for name, reason in self.refused.items():
            if f"refused.{name}" in given:
                raise UserError(f"--{name} is not supported ({reason}); leave the flag out.")
        plain = self._starting_point(given.pop("config", None), given.get("run.resume", False))
        dry_run = given.pop("dry_run", False)
        plain["model"]["model"], kind = self.canonical(given.pop("model.model", plain["model"]["model"]))
        if given.get("model.teacher"):
            given["model.teacher"], _ = self.canonical(given["model.teacher"])
        plain["merge"] = merge_settings(plain["merge"], given, written, kind, self.keep_order)
        notices += self.adjust(given, plain)
        for dest, value in given.items():
            section, _, name = dest.partition(".")
            if section != "merge":
                plain[section][name] = value
        config = self.config.from_dict(plain)

        for dests, reason, fatal in [*self._shared_effects(config), *self.effects(config)]:
            flags = [written[dest] for dest in dests if dest in given and dest in written]
            text = f"{', '.join(flags)} {'has' if len(flags) == 1 else 'have'} no effect: {reason}"
            if flags and fatal:
                raise UserError(f"{text}; leave {'it' if len(flags) == 1 else 'them'} out.")
            notices += [text] if flags else []
        unordered = config.merge is not None and config.merge.is_active and not config.merge.keep_order
        if unordered and "merge.keep_order" not in given:
            notices.append("without --if_order the merged tokens lose their order, as in the released code")
        return self.smoke(config) if config.run.smoke else config, dry_run, notices

    def canonical(self, model: str) -> tuple[str, str]:
        """Our name of a model, and what the name fixes; see `merging.canonical`."""
        return canonical(model, self.models, self.aliases)

    def _starting_point(self, path: str | None, resume: bool) -> dict[str, Any]:
        plain = self.config(merge=MergeConfig(keep_order=self.keep_order)).to_dict()
        if path is None:
            return plain
        loaded = read_json(Path(path))
        if not isinstance(loaded, dict):
            raise UserError(f"{path} holds a {type(loaded).__name__}; expected a run's config.json.")
        config = self.config.from_dict(loaded)
        name = config.run.name if resume else None  # another run has a folder of its own
        return dataclasses.replace(
            config, run=dataclasses.replace(config.run, resume=False, name=name)
        ).to_dict()

    def _shared_effects(self, config: TaskConfig) -> Effects:
        merge, data = config.merge, config.data
        if merge is not None and not merge.is_active:
            options = {flag.dest for flag in MERGE_FLAGS.values()} - {"merge.r", "merge.method"}
            yield sorted(options), "r = 0 merges nothing", False
        elif merge is not None:
            if merge.prune:
                yield ["merge.mode"], "--if_pruning drops tokens instead", False
            if not merge.needs_ssm:
                yield ["merge.released_flip"], "it is for --metric B, C and delta", True
        if not (config.model.has_weights or config.run.smoke):
            yield ["model.weights", "model.delete_head"], "there is no --model_pth", True
        if config.run.smoke:
            yield [f"model.{name}" for name in WEIGHTS], "--smoke takes no weights", False
            yield ["optim.epochs", "optim.warmup_epochs"], "--smoke stops after one epoch", False
        if config.run.eval:
            yield self._only_training(), "--eval only evaluates", False
            return
        if not config.distill.distill:
            yield (
                ["distill.distill_weight", "model.teacher", "model.teacher_pth"],
                "there is no --distill",
                True,
            )
        if config.optim.warmup_epochs == 0:
            yield ["optim.warmup_lr"], "there are no --warmup_epochs", False
        if not config.optim.model_ema:
            yield ["optim.model_ema_decay"], "there is no --model_ema", False
        if not data.mixes:
            yield [f"data.{name}" for name in MIXING], "neither --mixup nor --cutmix is on", False
        if not data.augment:
            yield [f"data.{name}" for name in self.augmenting], "--augment is off", False
        if not data.augment or data.reprob == 0:
            yield ["data.remode", "data.recount"], "nothing is erased (--reprob)", False

    def _only_training(self) -> list[str]:
        optim, distill = self.config.sections()["optim"], DistillConfig
        return [
            *(f"optim.{field.name}" for field in dataclasses.fields(optim)),
            *(f"distill.{field.name}" for field in dataclasses.fields(distill)),
            *(f"model.{name}" for name in ("drop_path", "teacher", "teacher_pth")),
            *(f"run.{name}" for name in ("log_every", "checkpoint_every")),
            *(f"data.{name}" for name in self.training),
        ]
