"""A task's command line: flags made from its settings, with the released recipes' names."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from rmeeto.cli.config import TaskConfig
from rmeeto.cli.flags import Flag, FlagParser, Given, Ignored, in_flags
from rmeeto.cli.merging import ACTIVE, NEEDS, add_merge_flags, merge_settings
from rmeeto.cli.teacher_cache import name_cache
from rmeeto.cli.timms import is_timms, unknown
from rmeeto.cli.trained import open_folders
from rmeeto.errors import UserError
from rmeeto.json_file import read_json
from rmeeto.merge import RULES, MergeConfig
from rmeeto.registry import ReleasedName
from rmeeto.settings import OWN, Need

SMOKED = Need(lambda config: False, "--smoke has its own")
EVALUATED = Need(lambda config: False, "--eval only evaluates")
MODES = {
    "dry_run": "print the resolved settings as JSON, run nothing",
    "check": "find and count the data, read a batch of it, compare the weights with the model; run and write nothing",
}

EXAMPLES = {
    "model": "--model {model} --model_pth weights.pth",
    "merge": "--r 5 --class_position exact",
    "data": "--data_set folder --data_path photos --batch_size 64",
    "optim": "--epochs 30 --lr 2e-5 --accumulation 2",
    "distill": "--distill --distill_weight 1",
    "run": "--eval --device cpu --output_dir log --name first",
}


@dataclass(frozen=True)
class Command:
    """What a task says about its command line.

    Args:
        prog: how it is started.
        description: what it does.
        config: the class of its settings.
        models: names of its models.
        aliases: the released code's names of them.
        flags: flags with names of their own.
        ignored: flags of the released code without effect.
        timms: whether timm's own models are taken by timm's names.
        refused: flags of the released code that ask for what there is not, and what there is instead.
        adjust: changes what was given, by section, in the light of the starting point; returns lines on what it has
            done.
        untrained, new_head: the defaults of how to train weights from scratch, and a new head on trained ones, where
            they are others.
    """

    prog: str
    description: str
    config: type[TaskConfig]
    models: Mapping[str, Any]
    aliases: Mapping[str, ReleasedName]
    flags: Mapping[str, Flag] = field(default_factory=dict)
    ignored: Mapping[str, Ignored] = field(default_factory=dict)
    timms: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    adjust: Callable[[Mapping[str, Given], Any], list[str]] = lambda given, start: []
    untrained: Mapping[str, Any] = field(default_factory=dict)
    new_head: Mapping[str, Any] = field(default_factory=dict)

    def parser(self) -> FlagParser:
        """All flags."""
        description = self.description
        if self.untrained:
            scratch, head = (
                " ".join(f"--{name} {value}" for name, value in values.items())
                for values in (self.untrained, self.new_head)
            )
            description += (
                f" The defaults re-train trained weights. Weights from scratch get others by themselves ({scratch}), "
                f"and so does a new head ({head})."
            )
        parser = FlagParser(self.prog, description, self.ignored)
        modes = parser.add_mutually_exclusive_group()
        for mode, what in MODES.items():
            modes.add_argument(f"--{mode}", dest="command.mode", action="store_const", const=mode, help=what)
        parser.add_argument(
            "--config",
            dest="command.config",
            metavar="FILE",
            help="start from a run's config.json; flags override it",
        )
        for section, config_class in self.config.sections().items():
            example = EXAMPLES[section].format(model=next(iter(self.models)))
            parser.add_section(section, config_class, section, example=example)
            if section == "model":
                add_merge_flags(parser, EXAMPLES["merge"])
        parser.add_flags(self.flags, "more names, as in the released scripts")
        for name in self.refused:
            parser.add_argument(f"--{name}", dest=f"refused.{name}", nargs="*", help=argparse.SUPPRESS)
        return parser

    def parse(self, argv: Sequence[str], model: nn.Module | None = None) -> tuple[Any, str, list[str]]:
        """Read a command line (without the program's name).

        Args:
            model: one that is there, whose merging the flags change; None: that of `argv`.

        Returns:
            The settings; which of `MODES` is wanted instead of a run, or ""; lines about flags without effect.

        Raises:
            UserError: an unknown flag, a value out of range, or a flag that the others leave without effect.
        """
        given, notices = self.parser().read(argv)
        for name in given["refused"].values:
            raise UserError(f"--{name} is not supported ({self.refused[name]}); leave the flag out.")
        start = open_folders(given, self._starting_point(given))
        if model is not None:
            start = dataclasses.replace(start, merge=getattr(model, "merge_config", None))
        name_cache(given, start)
        released = self._our_names(given["model"].values, start.model.model)
        if "config" not in given["command"].values and released is not None:
            start = dataclasses.replace(start, merge=released.start)
        notices += self.adjust(given, start)
        try:
            if "config" not in given["command"].values and released is None:
                start = self._for_untrained(given, start)
            merge = merge_settings(start.merge, given["merge"], released)
            sections = {name: given[name].over(getattr(start, name)) for name in self.config.sections()}
            config = dataclasses.replace(start, merge=merge, **sections)
        except ValueError as error:
            written = {name: flag for section in given.values() for name, flag in section.flags.items()}
            raise UserError(*self.in_flags(str(error), written).splitlines()) from None
        config = config.smoke() if config.run.smoke else config
        notices += self._without_effect(config, given)
        if released is not None:
            notices += [released.note] if released.note else []
            unordered = merge is not None and merge.is_active and not merge.keep_order
            if unordered and "keep_order" not in given["merge"].values:
                notices.append("without --if_order the merged tokens lose their order, as in the released code")
        return config, given["command"].values.get("mode", ""), notices

    def _for_untrained(self, given: Mapping[str, Given], start: TaskConfig) -> TaskConfig:
        """The starting point with the defaults for a student that, or whose head, nobody has trained."""
        run = given["run"].over(start.run)
        defaults = dict(self.defaults_for(given["model"].over(start.model)))
        if run.smoke or run.eval or not defaults:
            return start
        epochs = given["optim"].values.get("epochs")
        if epochs is not None:  # a short training warms up for a part of it
            defaults["warmup_epochs"] = min(defaults["warmup_epochs"], epochs // 4)
        return dataclasses.replace(start, optim=dataclasses.replace(start.optim, **defaults))

    def defaults_for(self, model: Any) -> Mapping[str, Any]:
        """How to train by default, where the model's weights, or its head's, are drawn from the seed."""
        if not model.is_untrained:
            return {}
        return self.new_head if model.starts_trained else self.untrained

    def in_flags(self, message: str, written: Mapping[str, str] | None = None) -> str:
        """A message of the library as this command line says it, see `rmeeto.cli.flags.in_flags`."""
        return in_flags(message, {**self.config.sections(), "merge": MergeConfig}, written)

    def resolve(self, model: str) -> tuple[str, ReleasedName | None]:
        """Our name of a model, and what it stands for if it is one of the released code.

        Raises:
            UserError: an unknown name.
        """
        released = self.aliases.get(model)
        name = model if released is None else released.model
        if name not in self.models and not (self.timms and is_timms(name)):
            raise unknown(model, self.models, self.aliases, self.timms)
        return name, released

    def _our_names(self, model: dict[str, Any], start: str) -> ReleasedName | None:
        model["model"], released = self.resolve(model.get("model", start))
        if model.get("teacher"):
            model["teacher"], _ = self.resolve(model["teacher"])
        return released

    def _starting_point(self, given: Mapping[str, Given]) -> TaskConfig:
        path = given["command"].values.get("config")
        if path is None:
            return self.config(merge=MergeConfig())
        plain = read_json(Path(path))
        merge = plain.get("merge")
        rule = merge.get("rule") if isinstance(merge, dict) else None
        if isinstance(rule, str) and rule not in RULES and given["merge"].values.get("rule") != rule:
            raise UserError(
                f"{path} merges by the rule {rule!r}, which is code of a module; if you trust it, say so: --rule {rule}"
            )
        config = self.config.from_dict(plain)
        resumes = given["run"].values.get("resume", False)
        name = config.run.name if resumes else None  # another run has a folder of its own
        return dataclasses.replace(config, run=dataclasses.replace(config.run, resume=False, name=name))

    def _without_effect(self, config: TaskConfig, given: Mapping[str, Given]) -> list[str]:
        """A line on the flags that have no effect for each reason.

        Raises:
            UserError: a flag that the others leave without any sense.
        """
        reasons: dict[tuple[str, bool], list[str]] = {}
        for section, config_class in {**self.config.sections(), "merge": MergeConfig}.items():
            for item in dataclasses.fields(config_class):
                need = self._unmet(config, section, item) if item.name in given[section].flags else None
                if need is not None:
                    key = need.because, need.fatal and not config.run.smoke
                    reasons.setdefault(key, []).append(given[section].flags[item.name])
        notices = []
        for (because, fatal), flags in reasons.items():
            few = len(flags) == 1
            text = self.in_flags(f"{', '.join(flags)} {'has' if few else 'have'} no effect: {because}")
            if fatal:
                raise UserError(f"{text}; leave {'it' if few else 'them'} out.")
            notices.append(text)
        return notices

    def _unmet(self, config: TaskConfig, section: str, item: dataclasses.Field) -> Need | None:
        """What a setting would need to have an effect, or None where it has one."""
        if section == "merge":
            needs = NEEDS.get(item.name, (ACTIVE,)) if config.merge is not None else ()
        else:
            needs = item.metadata["needs"]
            if config.run.smoke and item.metadata["smoke"] is not OWN:
                return SMOKED
            only = getattr(self.config.sections()[section], "only", "") or item.metadata["only"]
            if config.run.eval and only == "training":
                return EVALUATED
        return next((need for need in needs if not need.holds(config)), None)
