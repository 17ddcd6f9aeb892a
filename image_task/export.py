"""Make a model folder, or an ONNX file, of a run.

    python -m image_task.export runs/photos/retrained runs/photos/model --onnx

The model merges as in the run; its description says what the run was trained on, so that timm prepares pictures the
same way and the classes have names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as `python image_task/export.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

from torch import nn

from image_task.flags import COMMAND, parse
from image_task.main import build_model
from rmeeto.cli.parser import Parser, run_small
from rmeeto.errors import UserError, shown
from rmeeto.export import to_onnx
from rmeeto.hub import export
from rmeeto.trained_on import CONFIG, TrainedOn, trained_on

ONNX = "model.onnx"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code of `run_small`."""
    parser = Parser(prog="python -m image_task.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="folder of a run that trained")
    parser.add_argument("folder", help="a new folder, for model.safetensors and config.json")
    parser.add_argument("--onnx", action="store_true", help=f"write {ONNX} as well")
    args = parser.parse_args(argv)

    def work() -> None:
        model, _ = load_run(Path(args.run))
        for file in write(model, Path(args.folder), onnx=args.onnx):
            print(shown(file))

    return run_small(work, COMMAND.in_flags)


def load_run(run: Path) -> tuple[nn.Module, TrainedOn]:
    """The model of a run's best epoch, merged as there, which describes what it was trained on; and that.

    Raises:
        UserError: the folder is no run's that trained.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no folder; give that of a run.")
    config, _, _ = parse(["--model_pth", str(run), "--eval"])
    known = trained_on(config.model.model_pth)
    if known is None:
        raise UserError(f"{run / CONFIG} does not say what the run was trained on; train it again.")
    model = build_model(config, config.merge, num_classes=len(known.label_names)).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, **known.pretrained_cfg()}
    return model, known


def write(model: nn.Module, folder: Path, onnx: bool = False) -> list[Path]:
    """Write a model folder; the files."""
    export(model, folder)
    return [*sorted(folder.iterdir()), *([to_onnx(model, folder / ONNX)] if onnx else [])]


if __name__ == "__main__":
    sys.exit(main())
