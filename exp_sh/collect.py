"""Fill "ours" in exp_sh/README.md from finished runs: `python exp_sh/collect.py [folder ...] [--write]`.

A figure enters the README only from a run's own result.json, and its record (what ran, where, at which commit) goes
into exp_sh/results.json beside it. What nobody has run stays "not yet measured".
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MISSING = "not yet measured"
CELL = re.compile(r"(?P<open><!-- ours: (?P<patterns>[^>]*?) -->).*?(?P<close><!-- /ours -->)")
IMAGENET = {"IMNET": 50_000, "SUBIMNET": 50_000}  # images to evaluate

Record = dict[str, Any]


def main(argv: Sequence[str] | None = None, here: Path = HERE) -> int:
    """Print what the run folders hold; with --write also update results.json and README.md in `here`."""
    parser = argparse.ArgumentParser(description="Collect the results of finished runs for exp_sh/README.md.")
    parser.add_argument("folders", nargs="*", type=Path, default=[here.parent / "runs"], help="default: runs")
    parser.add_argument(
        "--write", action="store_true", help="update exp_sh/results.json and exp_sh/README.md"
    )
    args = parser.parse_args(argv)
    absent = [str(folder) for folder in args.folders if not folder.is_dir()]
    if absent:
        print(f"error: {absent[0]} is no folder; give one that holds run folders.", file=sys.stderr)
        return 2

    found, skipped = collect(args.folders)
    for name in sorted(found, key=natural):
        record = found[name]
        print(
            f"{name}: {figures(record)} ({record['epochs']} epochs, {record['processes']} x {record['device']})"
        )
    for folder, reason in skipped.items():
        print(f"skipped {folder}: {reason}")
    if not found:
        print("no finished runs")
    if args.write:
        write(found, here)
    return 0


def collect(roots: Iterable[Path]) -> tuple[dict[str, Record], dict[str, str]]:
    """Records of the runs below some folders by `<table>/<run>`, and why the others are none."""
    found, skipped = {}, {}
    for path in sorted(path for root in roots for path in root.rglob("result.json")):
        folder = path.parent
        try:
            result, config, env = (
                json.loads((folder / f"{name}.json").read_text()) for name in ("result", "config", "env")
            )
            reason = why_not(folder.parent.name, result, config)
            record = None if reason else record_of(result, config, env)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason, record = f"not a whole run folder ({type(error).__name__}: {error})", None
        if record is None:
            skipped[str(folder)] = reason
        else:
            found[f"{folder.parent.name}/{folder.name}"] = record
    return found, skipped


def why_not(table: str, result: Record, config: Record) -> str | None:
    """What keeps a finished run from being a row of its table, or None."""
    data = config["data"]
    if config["run"]["smoke"]:
        return "a smoke run"
    if data.get("max_train_batches") or data.get("max_eval_batches"):
        return "limited to a few batches"
    expected = IMAGENET.get(data["data_set"], result["count"])
    if result["count"] != expected:
        return f"evaluated on {result['count']} images, ImageNet-1K has {expected}"
    if re.fullmatch(r"tab\d+", table) and data["data_set"] == "digits":
        return "ran on the embedded digits"
    return None


def record_of(result: Record, config: Record, env: Record) -> Record:
    """What is kept of a run."""
    record = {"top1": float(result["top1"])}
    if "ema" in result:
        record["ema_top1"] = float(result["ema"]["top1"])
    return {
        **record,
        "epochs": int(result.get("epochs", 0)),
        "count": result["count"],
        "unreadable": result["unreadable"],
        "command": [Path(word).name if Path(word).is_absolute() else word for word in env["command"]],
        "seed": config["run"]["seed"],
        "amp": config["run"]["amp"],
        **{name: env[name] for name in ("commit", "device", "processes", "torch")},
    }


def write(found: dict[str, Record], here: Path) -> None:
    """Add records to results.json and rewrite the cells of README.md from all that it holds."""
    results, readme = here / "results.json", here / "README.md"
    records = read_records(results)
    changed = [name for name in found if records.get(name) not in (None, found[name])]
    for name in changed:
        print(f"replaced {name}: {figures(records[name])} -> {figures(found[name])}")
    records = {**records, **found}
    if records:
        ordered = {name: records[name] for name in sorted(records, key=natural)}
        results.write_text(json.dumps(ordered, indent=2) + "\n")
    old = readme.read_text()
    new = render(old, records)
    readme.write_text(new)
    rows = [cell["patterns"] for cell in CELL.finditer(old)]
    for name in sorted(found, key=natural):
        if not any(belongs(name, patterns) for patterns in rows):
            print(f"{name} belongs to no row of {readme.name}")
    print(f"{readme.name} {'updated' if new != old else 'is up to date'}, {len(records)} records")


def read_records(path: Path) -> dict[str, Record]:
    """The records kept so far."""
    return json.loads(path.read_text()) if path.exists() else {}


def render(text: str, records: dict[str, Record]) -> str:
    """A README with the cells between `<!-- ours: patterns -->` and `<!-- /ours -->` filled from records."""

    def fill(cell: re.Match[str]) -> str:
        names = sorted((name for name in records if belongs(name, cell["patterns"])), key=natural)
        shown = [f"{label(name)} {figures(records[name])}" for name in names]
        return f"{cell['open']}{'<br>'.join(shown) or MISSING}{cell['close']}"

    return CELL.sub(fill, text)


def belongs(name: str, patterns: str) -> bool:
    """Whether `<table>/<run>` is one of a cell's: it matches a pattern, and none that begins with `!`."""
    wanted, unwanted = [], []
    for pattern in patterns.split():
        (unwanted if pattern.startswith("!") else wanted).append(pattern.removeprefix("!"))
    matches = [fnmatch.fnmatchcase(name, pattern) for pattern in wanted]
    return any(matches) and not any(fnmatch.fnmatchcase(name, pattern) for pattern in unwanted)


def label(name: str) -> str:
    """A run's name without its table and what all models share."""
    return name.partition("/")[2].replace("_patch16_224", "")


def figures(record: Record) -> str:
    """A run's top-1 in percent."""
    averaged = f" (EMA {record['ema_top1']:.2f})" if "ema_top1" in record else ""
    unread = f" ({record['unreadable']} unreadable)" if record["unreadable"] else ""
    return f"{record['top1']:.2f}{averaged}{unread}"


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts r5 before r11."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


if __name__ == "__main__":
    sys.exit(main())
