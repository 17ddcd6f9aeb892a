"""Fill "ours" in exp_sh/README.md from finished runs: `python exp_sh/collect.py [folder ...] [--write]`.

A figure enters the README only from a run's own result.json, and its record (what ran, where, at which commit) goes
into exp_sh/results.json beside it. What nobody has run stays "not yet measured".
"""

from __future__ import annotations

import fnmatch
import html
import itertools
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python exp_sh/collect.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rmeeto.cli.parser import Parser
from rmeeto.errors import UserError, shown
from rmeeto.json_file import read_json, write_json

HERE = Path(__file__).resolve().parent
MISSING = "not yet measured"
CELL = re.compile(r"(?P<open><!-- ours: (?P<patterns>[^>]*?) -->).*?(?P<close><!-- /ours -->)")
IMAGES = 50_000  # of ImageNet-1K, to evaluate; how many videos of K400 are left differs from copy to copy
# What the figures of a table were measured with; the other tables are IMAGENET.
IMAGENET = {"data_set": ("IMNET",)}
K400 = {
    "data_set": ("Kinetics", "Kinetics_sparse"),
    "num_frames": (8,),
    "test_num_segment": (4,),
    "test_num_crop": (3,),
}
TABLES = {"tab8": {"data_set": ("SUBIMNET",)}, "tab13": K400, "tab14": K400}

Record = dict[str, Any]


def main(argv: Sequence[str] | None = None, here: Path = HERE) -> int:
    """Print what the run folders hold; with --write also update results.json and README.md in `here`.

    Returns:
        The exit code: 0, 2 for a user error, 1 where nobody reads the output any more.
    """
    parser = Parser(description="Collect the results of finished runs for exp_sh/README.md.")
    parser.add_argument("folders", nargs="*", type=Path, default=[here.parent / "runs"], help="default: runs")
    parser.add_argument("--write", action="store_true", help="update exp_sh/results.json and exp_sh/README.md")
    args = parser.parse_args(argv)
    absent = [str(folder) for folder in args.folders if not os.path.isdir(folder)]
    if absent:
        print(f"error: {shown(absent[0])} is no folder; give one that holds run folders.", file=sys.stderr)
        return 2

    found, skipped = collect(args.folders)
    lines = [
        f"{name}: {figures(record)} ({_trained(record)}, {record['processes']} x {record['device']})"
        for name, record in sorted(found.items(), key=lambda item: natural(item[0]))
    ]
    lines += [f"skipped {folder}: {reason}" for folder, reason in skipped.items()]
    if not found:
        lines.append("no finished runs")
    if args.write:
        try:
            lines += write(found, here)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    try:
        print(*map(shown, lines), sep="\n", flush=True)
    except BrokenPipeError:  # who read the output, such as head, has left; the exit flushes it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _trained(record: Mapping[str, Any]) -> str:
    """How long a run trained, if it did."""
    return f"{record['epochs']} epochs" if record["epochs"] else "evaluated"


def collect(roots: Iterable[Path]) -> tuple[dict[str, Record], dict[str, str]]:
    """Records of the runs below some folders by `<table>/<run>`, and why the others are none."""
    found, skipped = {}, {}
    walks = (walk for root in roots for walk in os.walk(root))  # which passes by what vanishes meanwhile
    for folder in sorted(Path(top) for top, *inside in walks if "result.json" in itertools.chain(*inside)):
        try:
            result, config, env = (read_json(folder / f"{name}.json") for name in ("result", "config", "env"))
            reason = why_not(folder.parent.name, folder.name, result, config)
            record = None if reason else record_of(result, config, env)
        except Exception as error:  # a folder may hold anything, and the others are still to be read
            reason, record = f"not a whole run folder ({type(error).__name__}: {error})", None
        if record is None:
            skipped[str(folder)] = reason
        else:
            found[f"{folder.parent.name}/{folder.name}"] = record
    return found, skipped


def why_not(table: str, name: str, result: Record, config: Record) -> str | None:
    """What keeps a finished run from being the one of its table that its folder is named after, or None."""
    data = config["data"]
    if config["run"]["smoke"]:
        return "a smoke run"
    if data.get("max_train_batches") or data.get("max_eval_batches"):
        return "limited to a few batches"
    if data.get("holdout"):
        return "evaluated on training images that were held out"
    if data["data_set"] in ("IMNET", "SUBIMNET") and result["count"] != IMAGES:
        return f"evaluated on {result['count']} images, ImageNet-1K has {IMAGES}"
    if not re.fullmatch(r"tab\d+", table):
        return None
    for field, known in TABLES.get(table, IMAGENET).items():
        if data[field] not in known:
            return f"its {field} is {data[field]}, {table} takes {' or '.join(map(str, known))}"
    if not (config["model"]["model_pth"] or config["model"].get("pretrained")):
        return "ran without pre-trained weights"
    return misnamed(name, config)


def misnamed(name: str, config: Record) -> str | None:
    """How a run differs from the model, r and use that its folder is named after, or None."""
    model, _, settings = name.partition("-")
    setting, *more = settings.split("-")
    if model != config["model"]["model"]:
        return f"its model is {config['model']['model']}, not {model}"
    r = (config["merge"] or {"r": 0})["r"]
    r = r if isinstance(r, list) else [r]
    names = ["r" + "_".join(f"{n:g}" for n in r)] if any(r) else ["dense", "r0"]
    if setting not in names:
        return f"its r is {', '.join(map(str, r))}, its folder's name says {setting or 'nothing'}"
    if config["run"]["eval"] != ("eval" in more):
        use = "only evaluated" if config["run"]["eval"] else "re-trained"
        return f"it was {use}, its folder's name says otherwise"
    return None


def record_of(result: Record, config: Record, env: Record) -> Record:
    """What is kept of a run."""
    record = {"top1": result["top1"]}
    if "ema" in result:
        record["ema_top1"] = result["ema"]["top1"]
    command = env["command"]
    return checked(
        {
            **record,
            "epochs": result.get("epochs", 0),
            "count": result["count"],
            "unreadable": result["unreadable"],
            "command": [Path(word).name if Path(word).is_absolute() else word for word in command],
            "seed": config["run"]["seed"],
            "amp": config["run"]["amp"],
            **{name: env[name] for name in ("commit", "device", "processes", "torch")},
        }
    )


def checked(record: Record) -> Record:
    """A record of numbers and short texts, as `record_of` makes them.

    Raises:
        ValueError: one that is none.
    """
    for name in ("top1", "ema_top1"):
        if type(value := record.get(name, 0)) not in (int, float) or not 0 <= value <= 100:
            raise ValueError(f"{name} is {str(value)[:80]!r}, no percentage")
    for name in ("epochs", "count", "unreadable", "seed", "processes"):
        if type(value := record[name]) is not int or not 0 <= value < 2**63:
            raise ValueError(f"{name} is {str(value)[:80]!r}, no whole number")
    for value in (
        record["amp"],
        record["commit"] or "",
        record["device"],
        record["torch"],
        *record["command"],
    ):
        if type(value) is not str or len(value) > 1000:
            raise ValueError(f"a text is {str(value)[:80]!r}")
    return record


def write(found: dict[str, Record], here: Path) -> list[str]:
    """Add records to results.json and rewrite the cells of README.md from all that it holds.

    Returns:
        Lines on what has changed.
    """
    results, readme = here / "results.json", here / "README.md"
    records = read_records(results)
    changed = [name for name in found if records.get(name) not in (None, found[name])]
    lines = [f"replaced {name}: {figures(records[name])} -> {figures(found[name])}" for name in changed]
    records = {**records, **found}
    if records:
        ordered = {name: records[name] for name in sorted(records, key=natural)}
        write_json(results, ordered)
    old = readme.read_text()
    new = render(old, records)
    readme.write_text(new)
    rows = [cell["patterns"] for cell in CELL.finditer(old)]
    homeless = [name for name in found if not any(belongs(name, patterns) for patterns in rows)]
    lines += [f"{name} belongs to no row of {readme.name}" for name in sorted(homeless, key=natural)]
    return [*lines, f"{readme.name} {'updated' if new != old else 'is up to date'}, {len(records)} records"]


def read_records(path: Path) -> dict[str, Record]:
    """The records kept so far.

    Raises:
        UserError: a file that holds something else.
    """
    records = read_json(path) if path.exists() else {}
    for name, record in records.items():
        try:
            checked(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: the record {name} is none ({type(error).__name__}: {error}); remove it."
            ) from None
    return records


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
    """A run's name without its table and what all models share, as text of a cell."""
    plain = shown(name.partition("/")[2].replace("_patch16_224", ""))
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(plain))


def figures(record: Record) -> str:
    """A run's top-1 in percent, with the number of samples where they are not ImageNet's."""
    total = "" if record["count"] == IMAGES else f" of {record['count']}"
    averaged = f" (EMA {record['ema_top1']:.2f})" if "ema_top1" in record else ""
    unread = f" ({record['unreadable']} unreadable)" if record["unreadable"] else ""
    return f"{record['top1']:.2f}{averaged}{total}{unread}"


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts r5 before r11."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


if __name__ == "__main__":
    sys.exit(main())
