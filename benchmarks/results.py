"""Result files: `<what>-<dtype>-<device>-pt<version>.json`, with what they were measured on and under which load."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from rmeeto.doctor import cpu_name
from rmeeto.engine.dist import World
from rmeeto.engine.record import environment
from rmeeto.errors import UserError

FOLDER = Path(__file__).parent / "results"


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def path_of(folder: Path, what: str, dtype: str, device: torch.device) -> Path:
    """Where the result of a suite belongs."""
    short = "cpu"
    if device.type == "cuda":
        short = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower().removeprefix("nvidia ")).strip("-")
    return folder / f"{what}-{dtype}-{short}-pt{torch.__version__.partition('+')[0]}.json"


def check_free(path: Path, force: bool) -> None:
    """Refuse a result file that exists.

    Raises:
        UserError: it exists, and ``force`` is not set.
    """
    if path.exists() and not force:
        raise UserError(f"{path} exists; give --force to replace it, or another --out.")


def begin(what: str, dtype: str, device: torch.device, **settings: Any) -> dict[str, Any]:
    """The head of a result, written down before anything is measured."""
    return {
        "what": what,
        "dtype": dtype,
        **environment(World(device)),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_start": os.getloadavg(),
        **settings,
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Complete a result with the load at its end, and write it; one of `FOLDER` is then in README.md, too.

    Raises:
        UserError: the file cannot be written.
    """
    result["load_average_end"] = os.getloadavg()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_on_one_line(json.dumps(result, indent=1)) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); give another --out.") from None
    if path.parent.resolve() == FOLDER.resolve():
        report.update()


def _on_one_line(text: str) -> str:
    """Lists of plain values on a line each."""
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)


def is_busy(result: dict[str, Any]) -> bool:
    """Whether other work ran beside the first measurement: then figures are rough, and ratios less so."""
    return result["load_average_start"][0] > 0.5 * (result["cores"] or 1)
