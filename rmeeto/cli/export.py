"""The frame of `export` of both tasks: a run's model as a model folder, an ONNX file, a package without Python."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rmeeto.cli.chosen import choose
from rmeeto.cli.parser import Parser, read_path, run_small
from rmeeto.cli.task import Task
from rmeeto.errors import UserError, shown
from rmeeto.export import to_onnx, to_package
from rmeeto.export.onnx import check_packages
from rmeeto.hub import export
from rmeeto.trained_on import CONFIG, trained_on

ONNX, PACKAGE = "model.onnx", "model.pt2"


@dataclass(frozen=True)
class Export:
    """A command of this kind.

    Args:
        prog, description: of the command.
        task: images' or clips'.
    """

    prog: str
    description: str
    task: Task

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a command line; the exit code of `run_small`."""
        parser = Parser(prog=self.prog, description=self.description)
        parser.add_argument("run", type=read_path, help="folder of a run that trained")
        parser.add_argument("folder", type=read_path, help="a new folder, for model.safetensors and config.json")
        parser.add_argument("--onnx", action="store_true", help=f"write {ONNX} as well")
        help = f"write {PACKAGE} and librmeeto.so as well, for C++ programs on processors like this one (minutes)"
        parser.add_argument("--package", action="store_true", help=help)
        args = parser.parse_args(argv)

        def work() -> None:
            for file in write(self.load_run(args.run), args.folder, args.onnx, args.package):
                print(shown(file))

        return run_small(work, self.task.command.in_flags)

    def load_run(self, run: Path) -> nn.Module:
        """The model of a run's best epoch, merged as there, which describes what it was trained on.

        Raises:
            UserError: the folder is no run's that trained.
        """
        if not run.is_dir():
            raise UserError(f"{run} is no folder; give that of a run.")
        chosen, notices = choose(self.task, [f"--model_pth={run}", "--device", "cpu"])
        for notice in notices:
            print(f"note: {shown(notice)}", file=sys.stderr)
        model = chosen.model
        if chosen.is_folder:  # which describes itself
            return model
        known = trained_on(chosen.config.model.model_pth)
        if known is None:
            raise UserError(f"{run / CONFIG} does not say what the run was trained on; train it again.")
        model.pretrained_cfg = {**model.pretrained_cfg, **known.pretrained_cfg()}
        return model


def write(model: nn.Module, folder: Path, onnx: bool = False, package: bool = False) -> list[Path]:
    """Write a model folder, and beside it what else is asked for; the files."""
    if onnx:
        check_packages()  # before anything is written
    export(model, folder)
    if onnx:
        write_onnx(model, folder)
    if package:
        to_package(model, folder / PACKAGE)
    return sorted(folder.iterdir())


def write_onnx(model: nn.Module, folder: Path) -> None:
    """The ONNX file beside a model folder's other files."""
    samples = "clips" if len(model.pretrained_cfg["input_size"]) == 4 else "images"
    to_onnx(model, folder / ONNX, names=(samples, "logits"))
