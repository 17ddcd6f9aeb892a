"""Command lines of all programs; the tasks' in a dry run, the others' as far as they read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random

import exp_sh.collect
import image_task.flags
import image_task.main
import image_task.throughput
import video_task.flags
import video_task.main
import video_task.throughput
import video_task.views
from tests.fuzz.case import Case, Kind, Wrong
from tests.fuzz.mutate import some_text
from tests.fuzz.programs import try_main

VALUES = (
    "0", "1", "4", "-1", "0.5", "1e-3", "1e20", "99999999999999999999", "2147483648", "1e-320", "inf", "nan",
    "True", "False",
    "none", "cosine", "l2", "sum", "mean", "X", "B", "C", "delta", "random", "odd-even", "bf16", "cpu", "auto",
    "digits",
    "IMNET", "folder", "wds", "hfds/x", "rand-m9-mstd0.5-inc1", "rand-m99", "bicubic", "bilinear", "pixel",
    "2,2", "2,3,3",
    "0.2,0.8", "exact", "window", "vim_nano_patch2_16", "vim_tiny_patch16_224", "videomamba_video_nano_patch4_32",
    "deit_tiny_patch16_224", "Kinetics_sparse", "batch", "plain", "ema", "..", "a/b", "runs", "c.json", "\udcff",
)  # fmt: skip
BEGIN = {
    "image": ["--model", "vim_nano_patch2_16"],
    "video": ["--model", "videomamba_video_nano_patch4_32"],
    "image throughput": ["--model", "vim_nano_patch2_16", "--batch_size", "2"],
    "video throughput": ["--model", "videomamba_video_nano_patch4_32", "--batch_size", "2"],
    "collect": [],
    "views": ["views/rank0.npz"],
}
HONEST = ("image", "video", "image throughput", "video throughput")


@cache
def _flags(program: str) -> Sequence[str]:
    parsers = {"image": image_task.flags.COMMAND.parser, "video": video_task.flags.COMMAND.parser}
    if program in parsers:
        return sorted(parsers[program]()._option_string_actions)
    return ("--model", "--r", "--metric", "--window", "--batch_size", "--img_size", "--dtype", "--device", "--compile",
            "--cuda_graph", "--runs", "--warmup", "--output", "--overwrite", "--write", "--help",
            "--num_frames")  # fmt: skip


def seeds() -> Mapping[str, bytes]:
    return {name: json.dumps(BEGIN[name]).encode() for name in HONEST}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    program = rng.choice(("image", "image", "image", "video", "video", "video", *BEGIN))
    words = list(BEGIN[program])
    flags = _flags(program)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        flag = rng.choice(flags)
        if rng.random() < 0.1:
            flag = some_text(rng, flags)
        values = [
            some_text(rng, VALUES) if rng.random() < 0.5 else rng.choice(VALUES)
            for _ in range(rng.choice((0, 1, 1, 1, 1, 2)))
        ]
        words += [f"{flag}={values[0]}"] if values and rng.random() < 0.2 else [flag, *values]
    if rng.random() < 0.1:
        rng.shuffle(words)
    if rng.random() < 0.05:
        words = words[: rng.randrange(len(words) + 1)]
    return Case(json.dumps([word.replace("\0", "0") for word in words]).encode(), program)


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    words = json.loads(case.data)
    if "--help" in words or "-h" in words:
        words = ["--help"]
    Path("c.json").write_text('{"model": {"model": "vim_nano_patch2_16"}}')
    match case.seed:
        case "image" | "video":
            module = {"image": image_task.main, "video": video_task.main}[case.seed]
            printed = try_main(module.main, [*words, "--dry_run"])
            return printed if words == ["--help"] else _same_again(module.main, printed)
        case "image throughput" | "video throughput":
            module = {"image": image_task.throughput, "video": video_task.throughput}[case.seed.split()[0]]
            try_main(lambda argv: _parse(module.COMMAND.parse, argv), words)
        case "collect":
            try_main(exp_sh.collect.main, [word for word in words if not word.startswith(("--w", "/", ".."))])
        case "views":
            try_main(video_task.views.main, words)
    return "read"


def _parse(parse, argv) -> int:
    from rmeeto.errors import UserError

    try:
        parse(argv)
    except UserError as error:
        import sys

        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _same_again(main, printed: str) -> str:
    """The settings of a dry run are strict JSON, and a starting point for the same ones."""

    def refuse(constant: str) -> None:
        raise Wrong(f"{constant} in the settings")

    settings = json.loads(printed, parse_constant=refuse)
    if settings["run"]["smoke"] or settings["run"]["resume"]:
        return "accepted"
    Path("again.json").write_text(printed)
    again = json.loads(try_main(main, ["--config", "again.json", "--dry_run"]))
    for config in (settings, again):
        config["run"].pop("name")
    if again != settings:
        raise Wrong(f"other settings from what it printed: {again} for {settings}")
    return "accepted"


# An unknown model lists all; what a command line names is looked into.
KIND = Kind(seeds, mutate, check, weight=12, batch=20, lines=30, may_read=True)
