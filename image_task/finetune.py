"""The whole way on your own pictures: dense, merged, re-trained, measured, drawn, exported."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python image_task/finetune.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import numpy as np
import torch
from torch import nn

from image_task.config import Config, DataConfig
from image_task.data import build_data
from image_task.datasets import SPLITS
from image_task.defaults import Recipe, recipe, small_size
from image_task.export import load_run
from image_task.flags import COMMAND, parse
from image_task.main import TASK, check, run
from image_task.split import make_split
from rmeeto.cli.export import ONNX, write, write_onnx
from rmeeto.cli.flags import FlagParser, in_flags
from rmeeto.cli.merging import add_merge_flags, merge_settings
from rmeeto.cli.parser import run_small
from rmeeto.cli.quickstart import write_summary
from rmeeto.engine.dist import DEVICES
from rmeeto.engine.preempt import EXIT_CODE, Preempted
from rmeeto.engine.progress import WIDTH
from rmeeto.errors import UserError, shown
from rmeeto.export.onnx import check_packages
from rmeeto.measure import benchmark, draw_merged, not_patches, trace
from rmeeto.merge import MergeConfig
from rmeeto.settings import Settings, setting
from rmeeto.trained_on import CONFIG

DRAWN = 8  # pictures
TIMED = 8  # pictures a batch
NAMES = {"dense": "dense", "training_free": "merged, not trained", "retrained": "merged, re-trained"}


@dataclass(frozen=True)
class FinetuneConfig(Settings):
    """What to train, and where to."""

    output_dir: str = setting("runs/finetune", "a new folder, for the runs, the picture, the summary and the model")
    resume: bool = setting(False, "go on in that folder, where it was interrupted")
    model: str = setting("vim_tiny_patch16_224", "its name; an unknown one lists all")
    model_pth: str | None = setting(None, "its weights, whose head is left out; none: from scratch")
    input_size: int | None = setting(
        None,
        "edge in pixels; none: the model's, or less from scratch on a CPU",
        within="[1, 16384]",
    )
    batch_size: int | None = setting(None, "pictures a step; none: by their number", within="[1, 1000000]")
    epochs: int | None = setting(None, "of the dense training; none: by the number of pictures", within="[1, inf)")
    retrain_epochs: int | None = setting(None, "of the merged model; none: a third, at least 3", within="[1, inf)")
    lr: float | None = setting(
        None,
        "highest rate of the dense training; none: 5e-5 on trained weights, else 1e-3",
        within="(0, inf)",
    )
    num_workers: int = setting(2, "processes that load pictures", within="[0, 1024]")
    onnx: bool = setting(False, "export an ONNX file as well")
    seed: int = setting(0, "of the weights and the order", within="[0, inf)")
    device: str = setting("auto", "auto, cpu or cuda", one_of=DEVICES)


def parser() -> FlagParser:
    """All flags."""
    prog = "python -m image_task.finetune"
    found = FlagParser(prog, (__doc__ or "").strip(), {})
    found.add_positional("folder", "of pictures: <class>/<image>, or train/<class>/<image> and val/<class>/<image>")
    example = "photos --model vim_tiny_patch16_224 --r 11 --output_dir runs/photos"
    found.add_section("finetune", FinetuneConfig, "what, how and where", example=example)
    add_merge_flags(found, "--r 11 --metric X")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code of `run_small`, or 75 after SIGTERM or SIGUSR1."""

    def work() -> None:
        given, notices = parser().read(sys.argv[1:] if argv is None else argv)
        folder = given["command"].values.get("folder")
        if not folder:
            raise UserError("no folder of pictures is given; --help shows an example.")
        merge = merge_settings(MergeConfig(), given["merge"], None)
        if merge is None or not merge.is_active:
            raise UserError("nothing is to be merged; give --r, the tokens that each merge removes, such as --r 11.")
        for notice in notices:
            print(f"note: {shown(notice)}", file=sys.stderr)
        values = given["finetune"].values
        if values.get("model_pth") and Path(values["model_pth"]).is_dir() and "model" not in values:
            values["model"] = parse(["--model_pth", values["model_pth"], "--eval"])[0].model.model
        finetune(Path(folder), given["finetune"].over(FinetuneConfig()), merge)

    def flags(message: str) -> str:
        return COMMAND.in_flags(in_flags(message, {"finetune": FinetuneConfig}))

    try:
        return run_small(work, flags, "interrupted; the same command with --resume goes on")
    except Preempted as error:
        print(f"stopped by {shown(str(error))}", file=sys.stderr)
        return EXIT_CODE


def finetune(pictures: Path, settings: FinetuneConfig, merge: MergeConfig) -> dict[str, Any]:
    """Train a dense model on the classes of a folder, merge it, re-train it with the dense one as teacher, export it.

    Args:
        pictures: holds <class>/<image>, or train/ and val/ of them.
        settings: their folder takes the runs, merged.png, summary.json and model/, as `rmeeto.hub.export` writes it.
        merge: how to merge. Where the input is made smaller here, r becomes the same share of its tokens.

    Returns:
        The summary: top-1 in percent of each step, pictures per second, token counts, seconds.
    """
    began, folder = time.perf_counter(), Path(settings.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is no folder; give a new one.")
    if not settings.resume and folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output_dir {folder} is not empty; give another, or --resume to go on there.")
    settings, merge = _smaller(dataclasses.replace(settings, model=COMMAND.resolve(settings.model)[0]), merge)
    if not any((pictures / name).is_dir() for names in SPLITS.values() for name in names):
        pictures = make_split(pictures, folder / "pictures")
    _check_splits(pictures)
    wanted = {name: getattr(settings, name) for name in ("batch_size", "epochs", "retrain_epochs", "lr")}
    chosen = recipe(_count(pictures), trained=settings.model_pth is not None, **wanted)
    steps, top1 = _steps(pictures, settings, merge, chosen), {}
    _check_steps(steps, settings.onnx)
    for name, flags in steps.items():
        print(f"\n== {NAMES[name]}", *_command(flags), sep="\n", flush=True)
        config, _, notices = parse(flags)
        for note in [*notices, *check(config)]:
            print(*textwrap.wrap(f"note: {COMMAND.in_flags(note)}", WIDTH, subsequent_indent="      "), sep="\n")
        result = run(config)
        top1[name] = (result.get("best") or result)["top1"]
    print(f"\n== measured, drawn, exported: {shown(folder)}")
    summary = {**top1, "r": merge.to_dict()["r"], **finish(config, folder, settings.onnx)}
    summary = write_summary(folder, summary, began)
    for line in _table(summary):
        print(line)
    return summary


def _check_steps(steps: Mapping[str, Sequence[str]], onnx: bool) -> None:
    """Refuse before the dense training what a later step would."""
    for flags in steps.values():
        check(parse(flags)[0])
    if onnx:
        check_packages()


def _smaller(settings: FinetuneConfig, merge: MergeConfig) -> tuple[FinetuneConfig, MergeConfig]:
    """Another input size, and r with it, where training from scratch on a CPU would take hours."""
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and not torch.cuda.is_available())
    if settings.model_pth is not None or settings.input_size is not None or not on_cpu:
        return settings, merge
    config, _, _ = parse(["--model", settings.model, "--merge_method", "none"])
    own = TASK.meta_model(config)
    size = small_size(config.img_size, own.patch_embed.proj.kernel_size[-1])
    if size == config.img_size:
        return settings, merge
    data = dataclasses.replace(config.data, input_size=size)
    here, there = TASK.meta_model(dataclasses.replace(config, data=data)).num_tokens[0], own.num_tokens[0]
    merge = _same_share(merge, here / there)
    text = (
        f"from scratch on a CPU: {size} pixels in place of {config.img_size}, which are {here} tokens of {there}, and "
        f"--r {_words(merge.r)} for the same share of them; --input_size {config.img_size} trains on all"
    )
    print(*textwrap.wrap(f"note: {text}", WIDTH, subsequent_indent="      "), sep="\n", flush=True)
    return dataclasses.replace(settings, input_size=size), merge


def _same_share(merge: MergeConfig, share: float) -> MergeConfig:
    """The merging that removes of a share of the tokens what `merge` removes of all."""

    def fewer(count: Any) -> Any:  # a float is a share already, or the slope of r over the blocks
        return min(count, max(1, round(count * share))) if isinstance(count, int) else count

    r = tuple(map(fewer, merge.r)) if isinstance(merge.r, tuple) else fewer(merge.r)
    return dataclasses.replace(merge, r=r, final_tokens=fewer(merge.final_tokens))


def _check_splits(pictures: Path) -> None:
    """Refuse a folder that is divided by half."""
    there = {split: any((pictures / name).is_dir() for name in names) for split, names in SPLITS.items()}
    for split, (first, *_) in SPLITS.items():
        if not there[split]:
            raise UserError(
                f"{pictures} is divided, but has no {first}/; give both parts, or the classes alone: a fifth of their "
                "pictures is then kept to choose the best epoch by. (A class cannot be called "
                f"{' or '.join(name for names in SPLITS.values() for name in names)}.)"
            )


def _count(pictures: Path) -> int:
    """How many there are to train on."""
    config = DataConfig(data_set="folder", data_path=str(pictures), batch_size=1, mixup=0.0, cutmix=0.0, num_workers=0)
    return build_data(config, img_size=16, rank=0, world_size=1, seed=0).num_train


def _steps(pictures: Path, settings: FinetuneConfig, merge: MergeConfig, chosen: Recipe) -> dict[str, list[str]]:
    """A command line of `image_task.main` for each step."""
    names = ("output_dir", "model", "num_workers", "seed", "device")
    always = {"data_set": "folder", "data_path": str(pictures)}
    always |= {name: f"{getattr(settings, name)}" for name in names}
    if settings.input_size is not None:
        always["input_size"] = f"{settings.input_size}"
    if settings.resume:
        always["resume"] = "True"
    merging = {name: _words(value) for name, value in merge.to_dict().items() if value != getattr(MergeConfig(), name)}
    head = {"model_pth": settings.model_pth, "delete_head": "True"} if settings.model_pth else {}
    after = {"model_pth": str(Path(settings.output_dir, "dense", "best.pt"))}
    evaluation = {"batch_size": chosen.dense["batch_size"], "eval": "True"}
    steps = {
        "dense": {**head, "merge_method": "none", **chosen.dense},
        "training_free": {**after, **merging, **evaluation},
        "retrained": {**after, **merging, **chosen.retrained},
    }
    return {
        name: [text for key, value in {**always, **flags, "name": name}.items() for text in (f"--{key}", value)]
        for name, flags in steps.items()
    }


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"


def _command(flags: Sequence[str]) -> list[str]:
    """The command line of a step, in lines that a shell takes as one."""
    pairs = [f"{flag} {shlex.quote(value)}" for flag, value in zip(flags[::2], flags[1::2])]
    lines = ["python -m image_task.main"]
    for pair in pairs:
        if len(lines[-1]) + len(pair) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {pair}"
    return [shown(line) for line in lines]


def finish(config: Config, folder: Path, onnx: bool = False) -> dict[str, Any]:
    """Measure, draw and export the re-trained model of a folder; token counts and pictures per second."""
    model, dense = load_run(folder / "retrained"), load_run(folder / "dense")
    data = build_data(config.data, img_size=config.img_size, rank=0, world_size=1, seed=0, train=False)
    images, _ = next(iter(data.eval_batches()))
    speed = benchmark({"dense": dense, "merged": model}, images[:TIMED], runs=5)
    rates = {f"{name}_images_per_s": round(timing.images_per_s, 1) for name, timing in speed.items()}
    ratios = np.divide(speed["dense"].seconds, speed["merged"].seconds)  # of rounds, in which both are timed
    rates["speed_up_quartiles"] = np.quantile(ratios, (0.25, 0.75)).round(2).tolist()
    chosen = images[:DRAWN]
    mean, std = (model.pretrained_cfg[name] for name in ("mean", "std"))
    picture = draw_merged(chosen, trace(model, chosen), not_patches(model), mean=mean, std=std)
    picture.savefig(folder / "merged.png", dpi=200)
    export_whole(model, folder / "model", onnx)
    described = {"token_counts": model.num_tokens, "dense_tokens": dense.num_tokens[0]}
    return {**described, **rates, "input_size": config.img_size, "classes": data.class_names}


def export_whole(model: nn.Module, folder: Path, onnx: bool) -> None:
    """Export a model into a folder that appears when it is whole; of one that is there, what is missing."""
    if not (folder / CONFIG).is_file():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        write(model, part, onnx)
        part.replace(folder)  # an empty folder may stand there
    elif onnx and not (folder / ONNX).exists():
        write_onnx(model, folder)


def _table(summary: dict[str, Any]) -> list[str]:
    """What came out, in lines."""
    dense, merged = (summary[f"{name}_images_per_s"] for name in ("dense", "merged"))
    first, last = summary["dense_tokens"], summary["token_counts"][-1]
    speeds = {
        "dense": f"{first} tokens, {dense:.0f} pictures/s",
        "retrained": f"{first} to {last} tokens, {merged:.0f} pictures/s",
    }
    low, high = summary["speed_up_quartiles"]
    noise = ": within the noise" if low <= 1 <= high else ""
    ratio = f"  {merged / dense:.2f} times as fast as the dense model (quartiles {low:.2f} to {high:.2f}){noise}"
    return [f"  {NAMES[name]:<20} {summary[name]:6.2f} % top-1  {speeds.get(name, '')}".rstrip() for name in NAMES] + [
        ratio
    ]


if __name__ == "__main__":
    sys.exit(main())
