"""The teacher's answers on disk, on Fashion-MNIST: how long a training takes that asks, writes or reads them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from image_task.main import main as train
from rmeeto.errors import UserError

WEIGHTS = Path(__file__).resolve().parents[1] / "image_task" / "exp_sh" / "fashion" / "vim.safetensors"
WAYS = {"live": [], "written": ["--teacher", "cache"], "read": ["--teacher", "cache"]}
ROUNDS, BATCHES, BATCH, IMAGES, CLASSES = 3, 12, 64, 60_000, 10


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    """A row for each way: seconds, images a second, how the losses differ from the live teacher's, bytes on disk.

    Raises:
        UserError: there is no Fashion-MNIST in DATA (data), or a training fails.
    """
    data = Path(os.environ.get("DATA", "data"))
    if not quick and not (data / "FashionMNIST" / "raw").is_dir():
        raise UserError(f"{data} holds no FashionMNIST/raw; set DATA to the folder that does.")
    own = ["--data_set", "digits", "--batch_size", "16", "--max_train_batches", "2"]
    if not quick:
        own = ["--data_set", "FASHION", "--data_path", str(data), "--model", "vim_nano_patch2_28"]
        own += ["--batch_size", str(BATCH), "--max_train_batches", str(BATCHES)]
    weights = WEIGHTS.parents[1] / "digits" / "dense.safetensors" if quick else WEIGHTS
    line = [*own, "--model_pth", str(weights), "--device", "cpu", "--num_workers", "0", "--accumulation", "1"]
    line += "--num_prune 11 --distill --epochs 1 --max_eval_batches 1 --log_every 1 --checkpoint_every 0".split()
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, list[float]] = {}
    size, entries = 0, 1
    for _ in range(1 if quick else ROUNDS):
        with tempfile.TemporaryDirectory(prefix="teacher") as folder:
            for way, flags in WAYS.items():
                with contextlib.redirect_stdout(io.StringIO()) as said:
                    code = train([*line, *flags, "--output_dir", folder, "--name", way])
                if code:
                    raise UserError(f"the training {way} ended with exit code {code}: {said.getvalue()[-500:]}")
                log = [json.loads(text) for text in (Path(folder) / way / "log.jsonl").read_text().splitlines()]
                took[way] += [entry["process"]["seconds"] for entry in log if entry["event"] == "train"]
                losses[way] = [entry["distillation"] for entry in log if entry["event"] == "step"]
            size = (Path(folder) / "teacher-cache" / "epoch0.bin").stat().st_size
            entries = len(losses["live"]) * (16 if quick else BATCH)
    live = median(took["live"])
    for way, seconds in took.items():
        yield {
            "answers": way,
            "data": "digits" if quick else "Fashion-MNIST, 197 tokens to 76",
            "images": entries,
            "seconds": median(seconds),
            "images_per_s": entries / median(seconds),
            "time_saved": 1 - median(seconds) / live,
            "largest_difference_of_a_loss": max(abs(a - b) for a, b in zip(losses[way], losses["live"])),
            "bytes_an_image": 0.0 if way == "live" else size / entries,
            "MB_an_epoch_of_60000": 0.0 if way == "live" else IMAGES * size / entries / 1e6,
        }
