"""Which test images each row of the evidence gets right: `python fig/evidence_pairs.py runs` adds what is missing.

Rows see the same images, so what one gets right and another does not says more of their difference than two accuracies
do. Answers come from the weights that the recorded accuracies are of, and have to add up to them. `--data` holds
FashionMNIST/raw/; the training-free rows need no run folders.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fig.evidence_records import RECORDS, RIGHT, packed  # noqa: E402
from image_task.flags import parse  # noqa: E402
from image_task.main import TASK  # noqa: E402
from rmeeto.engine.dist import World  # noqa: E402
from rmeeto.json_file import read_json, write_json  # noqa: E402


def weights(run: str, runs: Path) -> Path:
    """Of an evaluated row: those that it trained, or the dense ones."""
    kind = run.partition("-")[0]
    if "-free-test-" in run:
        return RECORDS.with_name(f"{kind}.safetensors")
    trained = re.sub(r"-elastic-at-r\d+-test-", "-elastic-brief-", run).replace("-test-", "-")
    return runs / "fashion" / trained / "last.pt"


@torch.inference_mode()
def answers(command: str, path: Path, data: str) -> np.ndarray:
    """Whether each image is right, in the order of the data set.

    Args:
        command: of the recorded evaluation.
        path: of the weights.
        data: the folder of the data set.
    """
    config, _, _ = parse([*shlex.split(command)[2:], "--model_pth", str(path), "--data-path", data])
    parts = TASK.build(config, World(torch.device("cpu")))
    model = parts.model.eval()
    return np.concatenate([(model(x).argmax(1) == y).numpy() for x, y in parts.data.eval_batches()])


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate what is missing, row by row; each is kept once it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, help="the folder of finished runs")
    parser.add_argument("--data", default="data", help="folder of FashionMNIST/raw/ (default: data)")
    options = parser.parse_args(argv)
    records: dict[str, dict[str, Any]] = read_json(RECORDS)
    found = read_json(RIGHT) if RIGHT.exists() else {}
    rows = [run for run in records if re.search(r"-test-seed0$", run) and run not in found]
    for run in sorted(rows, key=lambda run: ("-free-" in run, run)):
        path = weights(run, options.runs)
        if not path.exists():
            continue
        right, top1 = answers(records[run]["command"], path, options.data), records[run]["top1"]
        if round(100 * top1) != right.sum():
            raise SystemExit(
                f"{run}: {right.sum()} images are right, but {top1} % is recorded; {path} is of another run"
            )
        found[run] = packed(right)
        write_json(RIGHT, dict(sorted(found.items())))
        print(run, top1, flush=True)


if __name__ == "__main__":
    main()
