"""The flags of a throughput command: by the same names and in the same forms as those of the training command."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from rmeeto.cli.flags import Flag, FlagParser, Given, converter
from rmeeto.cli.merging import add_merge_flags, merge_settings
from rmeeto.cli.target import read_target
from rmeeto.cli.trained import open_folders
from rmeeto.engine.dist import DEVICES
from rmeeto.errors import UserError
from rmeeto.measure.speed import MIN_RUNS
from rmeeto.merge import MergeConfig
from rmeeto.settings import Settings, setting
from rmeeto.trained_on import CONFIG, trained_on

DTYPES = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Which model is timed."""

    model: str | None = setting(None, "a registered name, or a short one without the patch and size")
    model_pth: str | None = setting(
        None, "a run or model folder, whose model, size and merging are timed; trained weights change no time"
    )
    input_size: int | None = setting(None, "edge in pixels; none: the model's", "img_size", within="[1, 16384]")


@dataclass(frozen=True)
class SpeedConfig(Settings):
    """How it is timed, and where the result goes."""

    batch_size: tuple[int, ...] | None = setting(None, "sizes of a batch", within="[1, 1000000]")
    dtype: str = setting("fp32", "of autocast: fp32 (none), bf16, fp16, or auto (bf16 on a GPU)", one_of=DTYPES)
    device: str = setting("auto", "auto, cpu or cuda", one_of=DEVICES)
    compile: bool = setting(False, "time torch.compile(fullgraph=True) of the models")
    cuda_graph: bool = setting(False, "time replays of CUDA graphs")
    by_samples: bool = setting(False, "each CPU thread takes its part of a batch through all layers alone (fp32)")
    runs: int = setting(11, "timed runs of each model", within=f"[{MIN_RUNS}, 1000000]")
    warmup: int = setting(3, "passes before the first run", within="[1, 1000000]")
    output: str | None = setting(None, "the JSON file; the plot goes beside it as .png")
    overwrite: bool = setting(False, "replace files that exist")


def speed_parser(
    prog: str,
    description: str,
    add_flags: Callable[[FlagParser], None],
    r: Sequence[int],
    batch_size: Sequence[int],
    model: str,
) -> FlagParser:
    """All flags of a throughput command.

    Args:
        prog, description: of the command.
        add_flags: adds the task's own.
        r, batch_size, model: what is timed by default, for the help.
    """
    parser = FlagParser(prog, description.strip(), {})
    parser.add_section("model", ModelConfig, f"model (default: {model})", example=f"--model {model}")
    batches, removed = (" ".join(map(str, values)) for values in (batch_size, r))
    title = f"timing (batches of {batches} by default, with --target 8)"
    parser.add_section("speed", SpeedConfig, title, example=f"--batch_size {batches} --runs 21")
    add_merge_flags(parser, f"--r {removed} --class_position exact", own=("r", "window"))
    group = parser.add_argument_group("several models", f"for example --r {removed}, or --target 1.3x")
    hint = get_type_hints(MergeConfig)["r"]
    group.add_argument(
        "--r",
        "--num_prune",
        dest="speed.r",
        nargs="+",
        type=lambda text: _one(converter(hint)(text)),
        metavar="R",
        help="tokens that each merge removes: each value with spaces between is a model to time, one with commas "
        f"(5,5,6) a schedule; 0, dense, always runs (default: {removed}, with --target 0)",
    )
    window = get_type_hints(MergeConfig)["window"]
    group.add_argument(
        "--window",
        dest="speed.window",
        nargs="+",
        type=converter(window),
        metavar="WINDOW",
        help="time matching in a window of frames, rows and columns as well: 2,3,3 (pictures: 1,3,3)",
    )
    group.add_argument(
        "--target",
        dest="speed.target",
        type=read_target,
        metavar="TARGET",
        help="choose r of each merging block for a speed-up over dense, 1.3x, or a batch's latency, 20ms",
    )
    parser.add_flags({"amp": AMP}, "more names, as of the training command")
    add_flags(parser)
    return parser


def _find_run(values: dict[str, Any]) -> None:
    """Put the run's folder in the place of weights in it, which alone do not say what they are of.

    Raises:
        UserError: weights that are not there, or of a model that nothing names.
    """
    if values.get("model_pth") is None:
        return
    path = Path(values["model_pth"])
    if not path.exists():
        raise UserError(f"--model_pth {path} does not exist; expected a run or model folder.")
    if path.is_file() and not values.get("model"):
        if not (path.parent / CONFIG).is_file():
            raise UserError(f"--model_pth {path} does not say its model; give --model beside it.")
        values["model_pth"] = str(path.parent)


def _one(numbers: list[Any]) -> Any:
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _read_amp(text: str) -> str:
    known = {"off": "fp32", "auto": "auto", "bf16": "bf16", "fp16": "fp16"}
    if text not in known:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected one of {', '.join(known)}.")
    return known[text]


AMP = Flag("speed", "dtype", _read_amp, "auto, bf16, fp16 or off: the same as --dtype")


def read_options(
    parser: FlagParser, start: Any, own: Mapping[str, Any], argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """What a command line asks for.

    Args:
        parser: of `speed_parser`.
        start: the task's settings at their defaults.
        own: defaults of the task's own flags.
        argv: the command line.

    Returns:
        All settings by name; ``merge``, how the models merge but for r, is None where none of them is to; lines about
        flags without effect.

    Raises:
        UserError: a flag or value that cannot be used.
    """
    given, notices = parser.read(argv)
    _find_run(given["model"].values)
    start = open_folders(given, start)
    model, speed = given["model"].over(ModelConfig()), dict(given["speed"].values)
    several = {name: speed.pop(name, None) for name in ("r", "window", "target")}
    plain = Given(speed, given["speed"].flags).over(SpeedConfig())
    if several["window"] is not None:
        numbers = [number for part in several["window"] for number in part]
        several["window"] = None if numbers == [None] else tuple(numbers)
    try:
        merge = merge_settings(start.merge or MergeConfig(), given["merge"], None)
    except ValueError as error:
        raise UserError(*str(error).splitlines()) from None
    if several["r"] is None and start.merge is not None and merge is not None:
        several["r"] = [merge.r]  # of a folder
    known = trained_on(model.model_pth) if model.model_pth is not None else None
    size = model.input_size or (known.input_size[-1] if known is not None else None)
    options = argparse.Namespace(
        **{**own, **given["own"].values}, **vars(plain), **several, model=model.model, img_size=size,
        merge=None if merge is None else dataclasses.replace(merge, r=0) if merge.r else merge,
    )  # fmt: skip
    return options, notices
