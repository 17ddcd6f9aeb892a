"""Result files: `<what>-<dtype>-<device>-pt<version>.json`, with what they were measured on and under which load."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rmeeto.doctor import cpu_name
from rmeeto.engine.dist import World
from rmeeto.engine.record import environment
from rmeeto.errors import UserError

FOLDER = Path(__file__).parent / "results"
SAME = ("commit", "device", "torch", "threads", "quick", "runs")  # within one result


class Unit(NamedTuple):
    """Some rows of a result: what is measured together, and written down when it is complete.

    Args:
        name: by which a run that goes on knows that it has them; None: whoever made the unit knows.
        rows: measures them.
        table: of the result that they belong to.
    """

    name: str | None
    rows: Callable[[], Iterable[dict[str, Any]]]
    table: str = "rows"


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def path_of(folder: Path, what: str, dtype: str, device: torch.device) -> Path:
    """Where the result of a suite belongs."""
    short = "cpu"
    if device.type == "cuda":
        short = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower().removeprefix("nvidia ")).strip("-")
    return folder / f"{what}-{dtype}-{short}-pt{torch.__version__.partition('+')[0]}.json"


def begin(
    path: Path,
    what: str,
    dtype: str,
    device: torch.device,
    force: bool = False,
    resume: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """The head of a result, or all of one that was begun.

    Raises:
        UserError: the file exists, and is neither to be replaced nor to be completed, or was measured otherwise.
    """
    ran_on = environment(World(device))
    result = {
        "what": what,
        "dtype": dtype,
        **ran_on,
        "command": ["python", "-m", "benchmarks", *sys.argv[1:]],
        "commit": ran_on["commit"] or os.environ.get("COMMIT"),  # of a copy without its history
        "device": device_name(device),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_start": os.getloadavg(),
        **settings,
        **(_gpu(device) if device.type == "cuda" else {}),
        "units": [],
        "rows": [],
    }
    if not path.exists() or force:
        return result
    if not resume:
        raise UserError(f"{path} exists; give --force to replace it, --resume to complete it, or another --out.")
    try:
        begun = json.loads(path.read_text())
        other = [f"{name} {begun[name]}, now {result[name]}" for name in SAME if begun[name] != result[name]]
        other += [] if isinstance(begun["units"], list) and isinstance(begun["rows"], list) else ["no units"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be completed ({type(error).__name__}: {error}); give --force.") from None
    if other:
        raise UserError(f"{path} was measured otherwise ({'; '.join(other)}); give --force, or another --out.")
    return begun


def _gpu(device: torch.device) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "triton": next((package.version for package in metadata.distributions(name="triton")), None),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result with the load at its end: all of it or nothing.

    Raises:
        UserError: the file cannot be written.
    """
    result["load_average_end"] = os.getloadavg()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(_on_one_line(json.dumps(result, indent=1)) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); give another --out.") from None


def _on_one_line(text: str) -> str:
    """Lists of plain values on a line each; a text keeps its own spaces, and has no line breaks in JSON."""
    return re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]", text)


def is_busy(result: dict[str, Any]) -> bool:
    """Whether other work ran beside the first measurement: then figures are rough, and ratios less so."""
    return result["load_average_start"][0] > 0.5 * (result["cores"] or 1)
