"""The command line of the image task: the released recipes' flags, and which settings they reach."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from image_task.config import Config, DataConfig, DistillConfig, ModelConfig, OptimConfig, RunConfig, smoke
from image_task.models.registry import ALIASES, MODELS
from rmeeto.engine.flags import Flag, FlagParser, Ignored, converter, parse_bool
from rmeeto.engine.record import read_json
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from rmeeto.merge.config import final_tokens_from_compare, parse_choose


def _read_r(text: str) -> int | list[int | float]:
    try:
        values = [float(part) if "." in part else int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected an integer, one a merging block (5,5,6,...), or r,inflection (8,-1.0)."
        ) from None
    return values[0] if len(values) == 1 and isinstance(values[0], int) else values


def _read_method(text: str) -> bool:
    if text.lower() not in ("tome", "none"):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected ToMe or none.")
    return text.lower() == "tome"


def _read_choose(text: str) -> int:
    try:
        return parse_choose(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _read_compare(text: str) -> int:
    try:
        return final_tokens_from_compare(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected an integer of 0 or more (released: 11)."
        ) from None


def _read_shuffle(text: str) -> str | None:
    if text.lower() == "odd-even":
        return "odd-even"
    return "random" if parse_bool(text) else None


MERGE_FLAGS = {
    "merge_method": Flag("merge.method", _read_method, "ToMe, or none for the dense model (default: ToMe)"),
    "num_prune": Flag("merge.r", _read_r, "tokens that each merge removes: 5, or 5,5,6,... (default: 0)", ("r",)),
    "merge_interval": Flag("merge.interval", converter(int), "merge in every n-th block (default: 2)"),
    "if_merge_odd": Flag("merge.odd", parse_bool, "merge in the odd blocks", switch=True),
    "metric": Flag("merge.metric", str, "similarity of X, B, C or delta (default: X)"),
    "distance": Flag("merge.distance", str, "cosine, l1 or l2 (default: cosine)"),
    "merge_mode": Flag("merge.mode", str, "sum, mean, amax or amin (default: sum)"),
    "choose": Flag("merge.neighbour", _read_choose, "merge with the most similar token (max), the 3rd (3c) ..."),
    "if_pruning": Flag("merge.prune", parse_bool, "drop tokens instead of merging them", ("if_prune",), True),
    "if_order": Flag("merge.keep_order", parse_bool, "keep the tokens' order (default: False)", switch=True),
    "class_position": Flag("merge.class_position", str, "proportional or exact (default: proportional)"),
    "compare": Flag("merge.final_tokens", _read_compare, "the last merge leaves 197 - 11 n tokens"),
    "final_tokens": Flag("merge.final_tokens", converter(int | None), "the last merge leaves that many tokens"),
    "if_shuffle": Flag("merge.shuffle", _read_shuffle, "shuffle first: True (at random) or odd-even", switch=True),
    "shuffle_rate": Flag("merge.shuffle_rate", converter(float), "share of tokens that --if_shuffle permutes"),
    "released_flip": Flag("merge.released_flip", parse_bool, "B, C, delta flipped as released", switch=True),
}  # fmt: skip

_NO_EFFECT = "the released code did not use it either"
_TORCHRUN = "torchrun's environment says it"
IGNORED_FLAGS = {
    "opt": Ignored("AdamW is the optimizer", ("adamw",)),
    "momentum": Ignored("AdamW has betas (--betas)"),
    "sched": Ignored("the schedule is a cosine (--schedule)", ("cosine",)),
    "lr_noise": Ignored(_NO_EFFECT),
    "lr_noise_pct": Ignored(_NO_EFFECT),
    "lr_noise_std": Ignored(_NO_EFFECT),
    "decay_epochs": Ignored("the schedule is a cosine"),
    "decay_rate": Ignored("the schedule is a cosine"),
    "cooldown_epochs": Ignored("the cosine ends with the last epoch"),
    "patience_epochs": Ignored("the schedule is a cosine"),
    "drop": Ignored("the models have no dropout", ("0", "0.0")),
    "dist_eval": Ignored("evaluation is always shared by the processes, and exact"),
    "model_ema_force_cpu": Ignored("the average stays where the model is", ("false",)),
    "train_mode": Ignored("drop path is on in training and off in evaluation", ("true",)),
    "start_epoch": Ignored("--resume knows where to go on", ("0",)),
    "resplit": Ignored(_NO_EFFECT),
    "world_size": Ignored(_TORCHRUN),
    "local_rank": Ignored(_TORCHRUN),
    "dist_url": Ignored(_TORCHRUN),
    "if_merge": Ignored("--num_prune 0 or --merge_method none is the dense model", ("true",)),
    "if_amp": Ignored("use --amp"),
    "no_amp": Ignored("use --amp off"),
}


# Settings that only training reads.
_TRAINING = (
    *(f"optim.{field.name}" for field in dataclasses.fields(OptimConfig)),
    *(f"distill.{field.name}" for field in dataclasses.fields(DistillConfig)),
    *(f"model.{name}" for name in ("drop_path", "teacher", "teacher_pth")),
    *(f"run.{name}" for name in ("log_every", "checkpoint_every")),
    *(f"data.{name}" for name in ("color_jitter", "aa", "train_interpolation", "reprob", "remode", "recount",
      "mixup", "cutmix", "cutmix_minmax", "mixup_prob", "mixup_switch_prob", "mixup_mode", "smoothing",
      "repeated_aug", "augment", "data_ratio", "max_unreadable", "max_train_batches")),
)  # fmt: skip


def build_parser() -> FlagParser:
    """All flags of `image_task.main`."""
    parser = FlagParser(
        "python -m image_task.main",
        "Merge tokens in an image model, evaluate it, re-train it.",
        IGNORED_FLAGS,
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the resolved settings as JSON, run nothing"
    )
    parser.add_argument("--config", metavar="FILE", help="start from a run's config.json; flags override it")
    parser.add_section("model", ModelConfig, "model")
    parser.add_flags(MERGE_FLAGS, "merging")
    parser.add_section("data", DataConfig, "data")
    parser.add_section("optim", OptimConfig, "training")
    parser.add_section("distill", DistillConfig, "distillation")
    parser.add_section("run", RunConfig, "run")
    return parser


def parse(argv: Sequence[str]) -> tuple[Config, bool, list[str]]:
    """Read a command line (without the program's name).

    Returns:
        The settings; whether only a dry run is wanted; lines about flags without effect.

    Raises:
        UserError: an unknown flag, a value out of range, or a flag that the others leave without effect.
    """
    given, written, notices = build_parser().read(argv)
    plain = _starting_point(given.pop("config", None))
    dry_run = given.pop("dry_run", False)
    plain["model"]["model"], kind = canonical(given.pop("model.model", plain["model"]["model"]))
    if given.get("model.teacher"):
        given["model.teacher"], _ = canonical(given["model.teacher"])
    plain["merge"] = _merge_settings(plain["merge"], given, written, kind)
    for dest, value in given.items():
        section, _, name = dest.partition(".")
        if section != "merge":
            plain[section][name] = value
    config = Config.from_dict(plain)

    for dests, reason, fatal in _without_effect(config):
        flags = [written[dest] for dest in dests if dest in given]
        text = f"{', '.join(flags)} {'has' if len(flags) == 1 else 'have'} no effect: {reason}"
        if flags and fatal:
            raise UserError(f"{text}; leave {'it' if len(flags) == 1 else 'them'} out.")
        notices += [text] if flags else []
    if config.merge is not None and config.merge.is_active and not config.merge.keep_order:
        notices.append("without --if_order the merged tokens lose their order, as in the released code")
    return smoke(config) if config.run.smoke else config, dry_run, notices


def canonical(model: str) -> tuple[str, str]:
    """Our name of a model, and what the name fixes: "any", "merged", "shuffle" or "dense".

    Raises:
        UserError: an unknown name.
    """
    name, kind = ALIASES.get(model, (model, "any"))
    if name not in MODELS:
        raise UserError(f"unknown --model {model!r}; known: {', '.join([*MODELS, *ALIASES])}.")
    return name, kind


def _starting_point(path: str | None) -> dict[str, Any]:
    plain = Config(merge=MergeConfig(keep_order=False)).to_dict()
    if path is None:
        return plain
    loaded = read_json(Path(path))
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}; expected a run's config.json.")
    config = Config.from_dict(loaded)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, resume=False)).to_dict()


def _merge_settings(
    start: dict[str, Any] | None, given: dict[str, Any], written: dict[str, str], kind: str
) -> dict[str, Any] | None:
    options = {dest.partition(".")[2]: value for dest, value in given.items() if dest.startswith("merge.")}
    method = options.pop("method", None)
    if method is False or kind == "dense":
        if options:
            dense = (
                "a teacher is the dense model"
                if kind == "dense"
                else "--merge_method none is the dense model"
            )
            raise UserError(
                f"{written[f'merge.{next(iter(options))}']} has no effect: {dense}; leave it out."
            )
        return None
    if start is None and not options and method is None:
        return None
    merge = {**(start or MergeConfig(keep_order=False).to_dict()), **options}
    if kind == "shuffle" and merge["shuffle"] is None:
        merge["shuffle"] = "random"
    if merge["shuffle"] == "random" and not merge["shuffle_rate"]:
        raise UserError("shuffling needs a --shuffle_rate: the share of the tokens to permute, such as 0.3.")
    if "shuffle_rate" in options and merge["shuffle"] != "random":
        raise UserError("--shuffle_rate has no effect without --if_shuffle; add that or leave it out.")
    return merge


def _without_effect(config: Config) -> Iterator[tuple[Sequence[str], str, bool]]:
    """Settings that the others leave without effect, why, and whether that is an error (else a notice)."""
    data, merge = config.data, config.merge
    if merge is not None and not merge.is_active:
        options = {flag.dest for flag in MERGE_FLAGS.values()} - {"merge.r", "merge.method"}
        yield sorted(options), "r = 0 merges nothing", False
    elif merge is not None:
        if merge.prune:
            yield ["merge.mode"], "--if_pruning drops tokens instead", False
        if not merge.needs_ssm:
            yield ["merge.released_flip"], "it is for --metric B, C and delta", True
    if not data.data_set.startswith("INAT"):
        yield ["data.inat_category"], "it belongs to --data_set INAT", True
    if config.run.smoke:
        weights = ("model_pth", "teacher", "teacher_pth", "nb_classes")
        yield [f"model.{name}" for name in weights], "--smoke takes no weights", False
        images = ("data_set", "data_path", "data_ratio", "batch_size", "num_workers")
        limits = ("max_train_batches", "max_eval_batches")
        yield [f"data.{name}" for name in (*images, *limits)], "--smoke takes a few of the digits", False
        yield ["optim.epochs", "optim.warmup_epochs"], "--smoke stops after one epoch", False
    if config.run.eval:
        yield _TRAINING, "--eval only evaluates", False
        return
    if not config.distill.distill:
        yield ["distill.distill_weight", "model.teacher", "model.teacher_pth"], "there is no --distill", True
    if data.data_set != "SUBIMNET":
        yield ["data.data_ratio"], "it belongs to --data_set SUBIMNET", True
    if config.optim.warmup_epochs == 0:
        yield ["optim.warmup_lr"], "there are no --warmup_epochs", False
    if not config.optim.model_ema:
        yield ["optim.model_ema_decay"], "there is no --model_ema", False
    if not data.mixes:
        mixing = [f"data.{name}" for name in ("mixup_prob", "mixup_switch_prob", "mixup_mode")]
        yield mixing, "neither --mixup nor --cutmix is on", False
    if not data.augment:
        augmenting = (
            "color_jitter",
            "aa",
            "train_interpolation",
            "reprob",
            "mixup",
            "cutmix",
            "repeated_aug",
        )
        yield [f"data.{name}" for name in augmenting], "--augment is off", False
    if not data.augment or data.reprob == 0:
        yield ["data.remode", "data.recount"], "nothing is erased (--reprob)", False
