"""How much a block keeps: `python fig/information.py` draws docs/information.png, and writes docs/measure.md's table.

`--measure NAME...` first measures some of the records in image_task/exp_sh/fashion/information/: `gaussians`, whose
information is known; `vim` and `deit`, the dense models of the evidence (`--data` holds FashionMNIST/raw/);
`vim-per-token` and `deit-per-token`, one block of them with a network for each token.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fig.evidence_records import MODELS  # noqa: E402
from fig.record import MISSING, between, save  # noqa: E402
from image_task.information import measure  # noqa: E402
from rmeeto.engine.dist import World  # noqa: E402
from rmeeto.engine.record import environment  # noqa: E402
from rmeeto.json_file import read_json, write_json  # noqa: E402
from rmeeto.measure.mutual_information import ESTIMATORS, Settings, gaussians, mutual_information  # noqa: E402

FASHION = ROOT / "image_task" / "exp_sh" / "fashion"
RECORDS = FASHION / "information"
DOCUMENT, PICTURE = ROOT / "docs" / "measure.md", ROOT / "docs" / "information.png"
OF_GAUSSIANS = "<!-- table: written by fig/information.py -->", "<!-- end of table -->"
OF_BLOCKS = "<!-- blocks: written by fig/information.py -->", "<!-- end of blocks -->"
OF_TOKENS = "<!-- tokens: written by fig/information.py -->", "<!-- end of tokens -->"
NATS, DIMENSIONS, SAMPLES, SEEDS = (1.0, 4.0), 20, 50_000, (0, 1, 2)
PER_TOKEN, MIDDLE = "-per-token", 4  # as many networks as tokens and seeds: of one block, the middle one
WORDS = {"mixer": "mixer", "forward": "scan forward", "backward": "scan backward", "both": "both scans"}


def measure_gaussians(path: Path, steps: int) -> None:
    """Both bounds on Gaussians of known information; a record."""
    began, rows = time.perf_counter(), []
    for nats in NATS:
        for estimator in ESTIMATORS:
            found = [
                float(
                    mutual_information(
                        *gaussians(nats, DIMENSIONS, SAMPLES, seed),
                        estimator,
                        settings=Settings(steps=steps, seed=seed),
                    )
                )
                for seed in SEEDS
            ]
            rows.append({"nats": nats, "estimator": estimator, "found": found})
            print(rows[-1], flush=True)
    about = {"what": "mutual information of Gaussians", **environment(World(torch.device("cpu")))}
    about |= {"dimensions": DIMENSIONS, "samples": SAMPLES, "steps": steps, "seeds": SEEDS}
    write_json(path, {**about, "results": rows, "seconds": time.perf_counter() - began})


def measure_model(path: Path, name: str, weights: str, data: str, steps: int, per_token: bool) -> None:
    """I(X; Y) of every block of a dense model of the evidence, or with a network a token of one's mixer; a record."""
    flags = {
        "--model": MODELS[name], "--model_pth": weights, "--data_set": "FASHION", "--data_path": data,
        "--samples": "10000", "--num_workers": "0", "--steps": str(steps), "--output": str(path),
    }  # fmt: skip
    which = ["--blocks", *map(str, range(8))]
    if per_token:
        which = ["--blocks", str(MIDDLE), "--parts", "mixer", "--per_token"]
    measure([*(word for flag in flags.items() for word in flag), *which, "--overwrite"])
    path.with_suffix(".png").unlink()  # docs/information.png shows it
    write_json(path, without_folders(read_json(path)))


def without_folders(record: dict[str, Any]) -> dict[str, Any]:
    """A record that names files without the folders that they lay in."""

    def short(word: str) -> str:
        return Path(word).name if Path(word).is_absolute() else word

    return {**record, "command": [*map(short, record["command"])], "weights": short(record["weights"])}


def records() -> dict[str, dict[str, Any]]:
    """The records that there are, by name."""
    return {path.stem: read_json(path) for path in sorted(RECORDS.glob("*.json"))}


def data() -> list[Path]:
    """The files of the records."""
    return sorted(RECORDS.glob("*.json"))


def table() -> str:
    """What the bounds find of the Gaussians' information."""
    found = records().get("gaussians", {"results": []})["results"]
    lines = [
        f"| on Gaussians of {DIMENSIONS} dimensions, {SAMPLES:,} samples, {len(SEEDS)} seeds | "
        + " | ".join(f"{nats:g} nat{'s' * (nats > 1)}" for nats in NATS)
        + " |",
        "|---|" + "---|" * len(NATS),
    ]
    for estimator in reversed(ESTIMATORS):
        cells = []
        for nats in NATS:
            values = [row["found"] for row in found if (row["nats"], row["estimator"]) == (nats, estimator)]
            low, high = (min(values[0]), max(values[0])) if values else (None, None)
            cells.append(
                MISSING if low is None else f"{low:.2f} to {high:.2f} ({100 * (np.mean(values) / nats - 1):+.0f} %)"
            )
        lines.append(f"| `{estimator}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def blocks_table() -> str:
    """What the bounds find of each block of the models: the mean over tokens and seeds, and how far seeds are apart."""
    found = {name: record for name, record in records().items() if name in MODELS}
    if not found:
        return MISSING
    numbers = next(iter(found.values()))["blocks"]
    lines = [f"| nats, by block | bound | {' | '.join(map(str, numbers))} |", "|---|---|" + "---|" * len(numbers)]
    for name in MODELS:
        for result in found.get(name, {"results": []})["results"]:
            nats = np.array(result["nats"]).mean(2)  # (seeds, blocks)
            cells = [f"{mean:.2f} ± {half:.2f}" for mean, half in zip(nats.mean(0), np.ptp(nats, axis=0) / 2)]
            head = f"`{MODELS[name]}`, {WORDS[result['part']]} | `{result['estimator']}`"
            lines.append(f"| {head} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tokens_table() -> str:
    """What the bounds find at each token of one block: by the network that serves all, and by one for each token."""
    found, lines = records(), []
    for name in MODELS:
        if not {name, name + PER_TOKEN} <= set(found):
            continue
        places = found[name + PER_TOKEN]["places"][0]
        if not lines:
            heads = " | ".join(map(str, places))
            lines = [f"| nats in block {MIDDLE}, by place | bound | network | {heads} | mean |"]
            lines.append("|---|---|---|" + "---|" * (len(places) + 1))
        for estimator in ESTIMATORS:
            for record, word in ((found[name], "one for all"), (found[name + PER_TOKEN], "one a token")):
                (nats,) = (
                    np.array(result["nats"])[:, record["blocks"].index(MIDDLE)]  # (seeds, tokens)
                    for result in record["results"]
                    if (result["part"], result["estimator"]) == ("mixer", estimator)
                )
                values = np.concatenate([nats, nats.mean(1, keepdims=True)], 1)
                cells = [f"{mean:.2f} ± {half:.2f}" for mean, half in zip(values.mean(0), np.ptp(values, axis=0) / 2)]
                lines.append(f"| `{MODELS[name]}`, mixer | `{estimator}` | {word} | {' | '.join(cells)} |")
    return "\n".join(lines) or MISSING


def draw(path: Path) -> None:
    """What each bound finds of the Gaussians; then of each model measured, by block: a line a part, bands of seeds."""
    found = records()
    models = [name for name in MODELS if name in found]
    columns = 1 + len(models)
    figure, axes = plt.subplots(
        len(ESTIMATORS), columns, figsize=(2.2 + 3.2 * columns, 6.4), layout="constrained", squeeze=False
    )
    for ax_row, estimator in zip(axes, ESTIMATORS):
        for ax in ax_row[:2]:  # the Gaussians, and the first of the models, whose axis the others share
            ax.set_ylabel("bound found (nats)")
        of_gaussians(ax_row[0], [row for row in found["gaussians"]["results"] if row["estimator"] == estimator])
        for ax, name in zip(ax_row[1:], models):
            of_blocks(ax, found[name], estimator)
            ax.sharey(ax_row[1])
            ax.set_title(f"{MODELS[name]}\n{estimator}", fontsize=10)
        ax_row[0].set_title(f"Gaussians of {DIMENSIONS} dimensions\n{estimator}", fontsize=10)
        for ax in ax_row:
            ax.grid(alpha=0.3)
            ax.axhline(0, color="0.3", lw=0.8)  # a bound on samples can be below it, where there is little to find
    save(figure, path, data())
    plt.close(figure)


def of_gaussians(ax: Any, rows: list[dict[str, Any]]) -> None:
    """Nats found against nats there are, and the truth."""
    highest = 1.1 * max(NATS)
    ax.plot([0, highest], [0, highest], color="0.5", ls=":", label="the truth")
    for row in rows:
        ax.plot(
            [row["nats"]] * len(row["found"]), row["found"], "o", color="C0", label="a seed" if row is rows[0] else None
        )
    ax.set_xlabel("true mutual information (nats)")
    ax.legend(fontsize=8)


def of_blocks(ax: Any, record: dict[str, Any], estimator: str) -> None:
    """Nats against the block, a line for each part."""
    for at, result in enumerate(r for r in record["results"] if r["estimator"] == estimator):
        nats = np.array(result["nats"]).mean(2)  # (seeds, blocks): the tokens' mean
        ax.plot(record["blocks"], nats.mean(0), marker="os^d"[at], color=f"C{at}", label=WORDS[result["part"]])
        ax.fill_between(record["blocks"], nats.min(0), nats.max(0), alpha=0.2, color=f"C{at}", lw=0)
    ax.set_xlabel("block")
    ax.legend(fontsize=8, loc="lower right", ncols=2)


def renewed(text: str) -> str:
    """A document with the tables of today's records."""
    for (begin, end), content in ((OF_GAUSSIANS, table()), (OF_BLOCKS, blocks_table()), (OF_TOKENS, tokens_table())):
        text = between(text, begin, end, content)
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, write, and measure before that what the command line names."""
    of_tokens = [name + PER_TOKEN for name in MODELS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measure", nargs="+", choices=("gaussians", *MODELS, *of_tokens), default=[])
    parser.add_argument("--data", default="data", help="folder of FashionMNIST/raw/ (default: data)")
    parser.add_argument("--weights", help="of the model measured (default: those beside the recipes)")
    parser.add_argument("--steps", type=int, default=1000, help="of each network (default: 1000, the paper's)")
    options = parser.parse_args(argv)
    RECORDS.mkdir(exist_ok=True)
    for name in options.measure:
        path = RECORDS / f"{name}.json"
        if name == "gaussians":
            measure_gaussians(path, options.steps)
        else:
            model = name.removesuffix(PER_TOKEN)
            weights = options.weights or str(FASHION / f"{model}.safetensors")
            measure_model(path, model, weights, options.data, options.steps, per_token=name in of_tokens)
    DOCUMENT.write_text(renewed(DOCUMENT.read_text()))
    draw(PICTURE)


if __name__ == "__main__":
    main()
