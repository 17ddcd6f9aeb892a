"""Tables of the result files, for the terminal and for README.md: `python -m benchmarks.report` renews the latter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import wall_time

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- tables: written by report.py from results/ -->", "<!-- end of tables -->"
NONE_YET = "Not yet measured.\n"
MEGA = 1e6
WORDS = ("what", "shape", "pass", "mode", "way", "met", "note")  # columns whose cells say what they are


def update(readme: Path = FOLDER / "README.md", folder: Path = FOLDER / "results") -> None:
    """Write the tables of all result files between the README's markers, and those of docs/scaling.md."""
    readme.write_text(renewed(readme.read_text(), folder))
    wall_time.update()


def renewed(text: str, folder: Path) -> str:
    """The README's text with the tables of a folder's results."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{tables(folder)}\n{END}{tail}"


def tables(folder: Path) -> str:
    """A section for each result file."""
    files = sorted(folder.glob("*.json"))
    return "\n".join(section(file.name, json.loads(file.read_text())) for file in files) or NONE_YET


def section(name: str, result: dict[str, Any]) -> str:
    """Where and how it was measured, and the table."""
    load = f"{result['load_average_start'][0]:.1f} to {result['load_average_end'][0]:.1f}"
    where = (
        f"{result['device']}, {result['threads']} threads of {result['cores']} cores, torch {result['torch']}, "
        f"load {load}, {result['date'][:10]}, commit {(result['commit'] or 'unknown')[:12]}, "
        f"`{' '.join(result['command'])}`"
    )
    found = {name: value for name, value in result.items() if are_rows(value)}
    parts = [_table([cells(row) or _plain(row) for row in found.pop("rows", [])])]
    parts += [f"{name}\n\n{_table([_plain(row) for row in rows])}" for name, rows in found.items()]
    return "\n\n".join([f"### {name}", where, *filter(None, parts)]) + "\n"


def are_rows(value: Any) -> bool:
    """Whether a value of a result is a table."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _plain(row: dict[str, Any]) -> dict[str, str]:
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()}


def _table(rows: list[dict[str, str]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(key, "").replace("|", "\\|") for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def line(row: dict[str, Any], table: str = "rows") -> str:
    """A row on one line of the terminal."""
    shown = cells(row) if table == "rows" else _plain(row)
    return "  ".join(value if key in WORDS else f"{key} {value}" for key, value in shown.items())


def cells(row: dict[str, Any]) -> dict[str, str]:
    """What the tables show of a row, by column."""
    shown = {
        "what": row.get("row") or row.get("what") or row.get("model") or row.get("split"),
        "shape": ", ".join(map(str, row["shape"])) if "shape" in row else None,
        "pass": row.get("pass"),
        "batch": row.get("batch"),
        "mode": row.get("mode"),
        "size": row.get("size"),
        "way": row.get("way") or row.get("backend"),
        "r": row.get("r"),
        "workers": row.get("workers"),
        "ms": _number(row.get("median_ms")),
        "IQR": _number(row.get("spread_ms", row.get("spread"))),
        "images/s": _number(row.get("images_per_s")),
        "images/s a core": _number(row.get("images_per_s_core")),
        "waits": None if row.get("waits") is None else f"{row['waits']:.0%}",
        "ratio": _number(row.get("ratio")),
        "correlation": _number(row.get("correlation")),
        "top-1": _number(row.get("top1")),
        "top-1 (reported)": _number(row.get("reported_top1")),
        "speed-up": _number(row.get("speed_up")),
        "theory": _number(row.get("theory")),
        "over peer": _number(row.get("over_peer")),
        "merging": None if row.get("merging_share") is None else f"{row['merging_share']:.0%}",
        "target": _number(row.get("target")),
        "moonshot": _number(row.get("moonshot")),
        "met": None if "met" not in row else "met" if row["met"] else "not met",
        "of floor": None if row.get("share_of_floor") is None else f"{row['share_of_floor']:.0%}",
        "MB": None if row.get("memory_bytes") is None else f"{row['memory_bytes'] / MEGA:.1f}",
        "note": _note(row),
    }
    return {key: str(value) for key, value in shown.items() if value is not None}


def _note(row: dict[str, Any]) -> str | None:
    reason = row.get("refused")
    if reason:
        return f"refused: {reason if isinstance(reason, str) else '; '.join(reason)}"
    return f"left out: {row['skipped']}" if "skipped" in row else None


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


if __name__ == "__main__":
    update()
