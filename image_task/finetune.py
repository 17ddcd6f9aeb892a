"""The whole way on your own pictures: dense, merged, re-trained, measured, drawn, exported.

    python -m image_task.finetune photos --model vim_tiny_patch16_224 --model_pth weights.pth --r 8

The folder holds train/<class>/<image> and val/<class>/<image>.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python image_task/finetune.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from image_task.config import SMALL, Config
from image_task.data import ImageData, build_data
from image_task.flags import COMMAND, parse
from image_task.main import build_model, check, run
from rmeeto.cli.parser import Parser
from rmeeto.cli.quickstart import write_summary
from rmeeto.engine.preempt import EXIT_CODE, Preempted
from rmeeto.errors import UserError, shown
from rmeeto.hub import export
from rmeeto.measure import benchmark, draw_merged, trace

DRAWN = 8  # pictures
TIMED = 8  # pictures a batch


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code: 0, 2 for a user error, 130 after Ctrl-C.
    """
    parser = Parser(prog="python -m image_task.finetune", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", help="train/<class>/<image> and val/<class>/<image>")
    parser.add_argument("--output_dir", default="runs/finetune", help="a new folder (default: runs/finetune)")
    parser.add_argument("--model", required=True, help="an unknown one lists all")
    parser.add_argument("--model_pth", help="its weights, whose head is left out; none: from scratch")
    parser.add_argument("--r", required=True, help="tokens merged in every second block")
    parser.add_argument("--epochs", help="of the dense training (default: 50)")
    parser.add_argument("--retrain_epochs", default="10", help="of the merged model (default: 10)")
    parser.add_argument("--lr", help="of the dense training, per 512 images; a tenth of it re-trains")
    parser.add_argument("--batch_size", default="16", help="images a step (default: 16)")
    parser.add_argument("--input_size", help="pixels (default: the model's)")
    parser.add_argument("--num_workers", default="2", help="loader processes (default: 2)")
    try:
        args = vars(parser.parse_args(argv))
        finetune(Path(args.pop("folder")), Path(args.pop("output_dir")), **args)
    except (UserError, OSError) as error:
        text = COMMAND.in_flags(str(error)) if isinstance(error, UserError) else shown(error)
        print(f"error: {text}", file=sys.stderr)
        return 2
    except Preempted as error:
        print(f"stopped by {shown(str(error))}", file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted; the same command with another --output_dir starts anew", file=sys.stderr)
        return 130
    return 0


def finetune(
    pictures: Path, folder: Path, *, r: str, model_pth: str | None, epochs: str | None, retrain_epochs: str,
    lr: str | None, **common: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Train a dense model on the classes of a folder, merge it, re-train it with the dense one as teacher, export it.

    Args:
        pictures: holds train/ and val/, each <class>/<image>.
        folder: takes the runs, merged.png, summary.json and model/, as `rmeeto.hub.export` writes it.
        r, model_pth, epochs, retrain_epochs, lr, common: texts of flags of `image_task.main`.

    Returns:
        The summary: top-1 in percent of each step, images per second, token counts, seconds.
    """
    began = time.perf_counter()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output_dir {folder} is not empty; give another.")
    always = _flags(data_set="folder", data_path=str(pictures), output_dir=str(folder), **common)
    head = ["--model_pth", model_pth, "--delete_head"] if model_pth else []
    dense = [*always, *head, "--merge_method", "none", *_flags(name="dense", epochs=epochs, lr=lr)]
    trained = [*always, "--model_pth", str(folder / "dense" / "best.pt")]
    merged = [*trained, "--r", r]
    rate = parse(dense)[0].optim.lr / 10  # of weights that are trained already
    again = _flags(name="retrained", distill="True", epochs=retrain_epochs, lr=repr(rate), accumulation="1")
    steps = {
        "dense": dense,
        "training_free": [*merged, "--eval", "--name", "training_free"],
        "retrained": [*merged, *again, "--schedule", "cosine"],
    }
    top1 = {}
    for name, flags in steps.items():
        config, _, _ = parse(flags)
        print(f"== {name}", flush=True)
        for note in check(config):
            print(f"note: {note}")
        result = run(config)
        top1[name] = (result.get("best") or result)["top1"]
    config, _, _ = parse([*always, "--model_pth", str(folder / "retrained" / "best.pt"), "--r", r, "--eval"])
    summary = {**top1, "r": r, **finish(config, folder)}
    for name, value in top1.items():
        print(f"  {name:<14} {value:6.2f} % top-1")
    return write_summary(folder, summary, began)


def finish(config: Config, folder: Path) -> dict[str, Any]:
    """Measure, draw and export the re-trained model of some settings; token counts and images per second."""
    size = config.img_size
    data = build_data(config.data, img_size=size, rank=0, world_size=1, seed=0, train=False)
    model, dense = (
        build_model(config, merge, num_classes=data.num_classes).eval() for merge in (config.merge, None)
    )
    images, labels = next(iter(data.eval_batches()))
    speed = benchmark({"dense": dense, "merged": model}, images[:TIMED], runs=5)
    rates = {f"{name}_images_per_s": round(timing.images_per_s, 1) for name, timing in speed.items()}
    chosen = images[:DRAWN]
    picture = draw_merged(
        chosen, trace(model, chosen), model.class_index, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
    )
    picture.savefig(folder / "merged.png", dpi=200)
    describe_input(model, config, data)
    export(model, folder / "model")
    return {"token_counts": model.num_tokens, **rates, "classes": data.class_names}


def describe_input(model: torch.nn.Module, config: Config, data: ImageData) -> None:
    """Let the model's description say what its pictures are prepared like, and what its classes are called."""
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if config.img_size <= SMALL else config.data.eval_crop_ratio,
        "label_names": list(data.class_names),
    }


def _flags(**values: str | None) -> list[str]:
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", value)]


if __name__ == "__main__":
    sys.exit(main())
