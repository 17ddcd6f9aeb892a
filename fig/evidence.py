"""The evidence on Fashion-MNIST: `python fig/evidence.py` writes docs/evidence.md's tables and draws docs/evidence.png.

`--collect runs` first takes what the recipes of image_task/exp_sh/fashion/ have finished into the records, `--weights
runs` the dense weights of seed 0, from which the recipes start where dense.sh has not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import timm
from matplotlib.lines import Line2D
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fig.evidence_claims import CLAIMS  # noqa: E402
from fig.evidence_records import ARMS, IMAGES, MODELS, RECORDS, RIGHT, Evidence, collect, removed  # noqa: E402
from fig.record import MISSING, ROOT, between, save  # noqa: E402
from image_task.models import load_weights  # noqa: E402
from rmeeto import MergeConfig  # noqa: E402
from rmeeto.json_file import read_json, write_json  # noqa: E402

DOCUMENT, PICTURE = ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence.png"
SCHEDULES = ROOT / "benchmarks" / "results" / "schedule-fp32-cpu-pt2.15.0.json"
R = (0, 2, 5, 8, 11, 15, 20)
BASE = "r11"
RATES = ("0.1", "0.3", "0.5", "0.7")
# Rows of the tables that compare a setting with the paper's at r = 11: words, and the name in the recipes.
ORDER = [
    ("kept", BASE),
    ("not kept", "r11-noorder"),
    ("odd-even shuffle", "r11-oddeven"),
    *((f"shuffle {rate}", f"r11-shuffle{rate}") for rate in RATES),
]
ABLATIONS = [
    ("the paper's: X, cosine, size-weighted, nearest, `exact`", BASE),
    *((f"metric {name}", f"r11-metric{name}") for name in ("B", "C", "delta")),
    *((f"distance {name}", f"r11-{name}") for name in ("l1", "l2")),
    *((f"merged by {name}", f"r11-{name}") for name in ("mean", "amax", "amin")),
    *((f"neighbour {k}", f"r11-neighbour{k}") for k in (3, 5, 7, 14)),
    *((f"a merge in every {word} block", f"r11-every{n}") for n, word in ((2, "second"), (3, "third"), (4, "fourth"))),
    ("in every second block, the odd ones", "r11-odd"),
    ("class token's place exact", "r11-exact"),
    *((f"rule `{name}`", f"r11-{name}") for name in ("adjacent", "window", "energy", "importance", "shift", "random")),
]
AMOUNTS = [
    ("3 epochs of 4,000 images, with teacher", BASE),
    *((f"{n} epoch{'s' * (n > 1)}", f"r11-epochs{n}") for n in (1, 5, 7, 15)),
    ("without teacher", "r11-noteacher"),
    *((f"{share} % of the images, as many steps", f"r11-share{share}") for share in (10, 5, 1)),
]
BLOCKS = [(f"r = 30 before block {n} alone", f"block{n}") for n in range(1, 8)]
SLOPES = [
    ("r = 11 everywhere", BASE),
    ("22 falling to 0", "r11-slope-1"),
    ("0 rising to 22", "r11-slope1"),
]
LONGER = [
    ("r = 0 (the control)", "r0"),
    *((f"r = {r}", f"r{r}") for r in (5, 11, 20)),
    ("r = 11, pruned", "r11-prune"),
    ("r = 11, order not kept", "r11-noorder"),
]
LONGER_DEIT = ("r0", "r11", "r11-noorder")
ELASTIC = (0, 2, 5, 8, 11, 16, 20)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="the folder of finished runs")
    parser.add_argument("--weights", type=Path, metavar="RUNS", help="take the dense weights of seed 0 from there")
    args = parser.parse_args(argv)
    if args.weights:
        for kind in MODELS:
            if (args.weights / "fashion" / f"{kind}-dense-seed0" / "result.json").exists():
                ship(kind, args.weights)
    records = read_json(RECORDS) if RECORDS.exists() else {}
    if args.collect:
        found = collect(args.collect)
        print(f"{len(found)} finished runs in {args.collect}")
        records = dict(sorted({**records, **found}.items()))
        write_json(RECORDS, records)
    evidence = Evidence(records, read_json(RIGHT) if RIGHT.exists() else {})
    DOCUMENT.write_text(renewed(DOCUMENT.read_text(), evidence))
    draw(evidence)
    return 0


def ship(kind: str, runs: Path) -> None:
    """Put the dense weights of seed 0 beside the recipes."""
    model = timm.create_model(MODELS[kind])
    load_weights(model, runs / "fashion" / f"{kind}-dense-seed0" / "last.pt")
    save_file(model.state_dict(), RECORDS.with_name(f"{kind}.safetensors"))


def tables(evidence: Evidence) -> dict[str, str]:
    """The tables of docs/evidence.md by name."""
    return {
        "claims": claims(evidence),
        **{f"ratio-{arm}": ratio(evidence, arm) for arm in ARMS},
        "order": compared(evidence, ORDER),
        "order-deit": compared(evidence, ORDER, "deit"),
        "ablations": compared(evidence, ABLATIONS, share=True),
        "amount": compared(evidence, AMOUNTS, arms=("brief",)),
        "longer": longer(evidence),
        "blocks": compared(evidence, BLOCKS, arms=("free",), base="r0"),
        "schedules": compared(evidence, SLOPES, share=True),
        "fitted": fitted(),
        "elastic": elastic(evidence),
    }


def every_block(r: int) -> MergeConfig:
    """What the ratio's rows merge; Vim and DeiT remove the same."""
    return MergeConfig(r=r, interval=1)


def table(*rows: Iterable[str]) -> str:
    head, *body = map(list, rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def claims(evidence: Evidence) -> str:
    """Every claim with what is measured of it."""
    head = ["claim (of the paper, unless said)", "as measured here", "difference in points", "seeds", "the claim is"]
    return table(head, *(claim.row(evidence) for group in CLAIMS.values() for claim in group))


def ratio(evidence: Evidence, arm: str) -> str:
    """Accuracy against r, Vim and DeiT, merged and pruned."""
    head = [
        "r",
        "tokens removed",
        *(f"{kind}, {how}" for kind in ("Vim", "DeiT") for how in ("merged", "pruned")),
    ]
    rows = [
        [str(r), f"{removed(every_block(r)):.3f}"]
        + [
            evidence.cell(kind, f"r{r}{how}", arm) if r or not how else "-"
            for kind in ("vim", "deit")
            for how in ("", "-prune")
        ]
        for r in R
    ]
    return table(head, *rows)


def compared(
    evidence: Evidence,
    rows: Sequence[tuple[str, str]],
    kind: str = "vim",
    arms: Sequence[str] = tuple(ARMS),
    base: str = "",
    share: bool = False,
) -> str:
    """Rows beside the first of them, or beside `base`; with `share` also how many tokens each removes."""
    base, head = base or rows[0][1], ["setting", *(["tokens removed"] * share)]
    for arm in arms:
        head += [
            ARMS[arm],
            "difference to the dense model" if base == "r0" else "difference to the first row",
        ]
    cells = []
    for words, name in rows:
        row = [words, *([evidence.removed(kind, name)] * share)]
        for arm in arms:
            row += [
                evidence.cell(kind, name, arm),
                evidence.change(kind, name, arm, base) if name != base else "-",
            ]
        cells.append(row)
    return table(head, *cells)


def longer(evidence: Evidence) -> str:
    """What three epochs of 20,000 images bring where three of 4,000 are the rule."""
    arms = {"free": "training-free", "brief": "3 epochs of 4,000", "trained": "3 epochs of 20,000"}
    head = ["setting", *(f"{kind}, {words}" for kind in ("Vim", "DeiT") for words in arms.values())]
    rows = []
    for words, name in LONGER:
        row = [words]
        for kind in MODELS:
            shown = kind == "vim" or name in LONGER_DEIT
            row += [evidence.cell(kind, name, arm) if shown else "-" for arm in arms]
        rows.append(row)
    return table(head, *rows)


def fitted() -> str:
    """Schedules fitted to a latency beside constant ones, as `python -m benchmarks schedules` recorded them."""
    rows = [row for row in read_json(SCHEDULES)["rows"] if row["what"].startswith("Fashion-MNIST,")]
    if not rows:  # measured on a machine that has no Fashion-MNIST
        return MISSING
    head = ["r everywhere", "dense over it", "top-1", "fitted", "dense over it", "top-1", "difference"]
    body = []
    for dense, constant, other in zip(*(iter(rows),) * 3, strict=True):
        assert (dense["way"], constant["way"], other["way"]) == ("dense", "constant", "fitted")
        spread = sum(row["top1"] * (100 - row["top1"]) for row in (constant, other))
        change = f"{other['top1'] - constant['top1']:+.2f} ± {1.96 * (spread / IMAGES) ** 0.5:.2f}"
        times = [f"{dense['median_ms'] / row['median_ms']:.2f}" for row in (constant, other)]
        tops = [f"{row['top1']:.2f}" for row in (constant, other)]
        body.append([str(constant["r"]), times[0], tops[0], ", ".join(map(str, other["r"])), times[1], tops[1], change])
    return table(head, *body)


def elastic(evidence: Evidence) -> str:
    """One set of weights at many r beside one for each."""
    head = ["r", "one set of weights (`--elastic_r 0,5,11,16`)", "one for each r", "training-free"]
    return table(
        head,
        *([str(r), *(evidence.cell("vim", f"r{r}", arm) for arm in ("elastic", "brief", "free"))] for r in ELASTIC),
    )


def renewed(text: str, evidence: Evidence) -> str:
    """The document with its tables written anew."""
    for name, content in tables(evidence).items():
        begin, end = f"<!-- table {name}: written by fig/evidence.py -->", f"<!-- end of {name} -->"
        text = between(text, begin, end, content)
    return text


COLOURS = {"vim": "#0072B2", "deit": "#D55E00", "elastic": "#009E73"}  # of a model; of one set of weights
STYLES = {"free": (":", "white"), "brief": ("-", None), "elastic": ("--", None)}  # of an arm: line, inside of its marks


def draw(evidence: Evidence) -> None:
    """Accuracy against ratio, orders, blocks and one set of weights; what is not measured is said."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.8), layout="constrained")
    curves(axes[0, 0], evidence)
    bars(axes[0, 1], evidence, ORDER, "Order of the tokens (r = 11)", ("vim", "deit"))
    bars(axes[1, 0], evidence, [*BLOCKS, *SLOPES], "Where tokens are removed (Vim)")
    for arm in ("free", "brief", "elastic"):
        curve(axes[1, 1], evidence, [(r, "vim", f"r{r}") for r in ELASTIC], arm, "D" if arm == "elastic" else "o")
    axes[1, 1].set(title="One set of weights for any r (Vim)", xlabel="r", ylabel="top-1 on 10,000 test images (%)")
    for ax in (axes[0, 0], axes[1, 1]):
        ax.title.set_fontsize(10)
        ax.grid(alpha=0.3)
        if not ax.has_data():
            ax.text(0.5, 0.5, MISSING, ha="center", color="0.45", transform=ax.transAxes)
    figure.legend(handles=meanings(), loc="outside lower center", ncols=6, fontsize=9)
    figure.suptitle(
        "Fashion-MNIST, 197 tokens. Seed 0 with 95 % intervals over the test images; small dots: seeds 1 and 2",
        fontsize=9,
    )
    save(figure, PICTURE, [RECORDS, RIGHT])
    plt.close(figure)


def meanings() -> list[Line2D]:
    """What colours, marks and lines stand for, in every panel."""
    models = [
        Line2D([], [], color=COLOURS[kind], lw=6, label=words) for kind, words in (("vim", "Vim"), ("deit", "DeiT"))
    ]
    marks = [
        Line2D([], [], color="black", ls=line, marker=mark, mfc=inside, label=words)
        for (line, inside), mark, words in (
            (STYLES["free"], "o", "training-free"),
            (STYLES["brief"], "o", "re-trained"),
            (("", None), "x", "pruned"),
        )
    ]
    line, inside = STYLES["elastic"]
    one = Line2D(
        [], [], color=COLOURS["elastic"], ls=line, marker="D", mfc=inside, label="one set of weights for all r"
    )
    return [*models, *marks, one]


def curves(ax: plt.Axes, evidence: Evidence) -> None:
    """Accuracy against the share of tokens removed."""
    for kind in MODELS:
        for how, mark in (("", "o"), ("-prune", "x")):
            for arm in ARMS:
                points = [(removed(every_block(r)), kind, f"r{r}{how if r else ''}") for r in R]
                curve(ax, evidence, points, arm, mark)
    ax.set(title="Accuracy against ratio", xlabel="share of tokens removed, averaged over the blocks")
    ax.set_ylabel("top-1 on 10,000 test images (%)")


def curve(ax: plt.Axes, evidence: Evidence, points: Sequence[tuple[float, str, str]], arm: str, mark: str) -> None:
    """What is measured of some points (x, kind, name): a line through those of seed 0, dots for the others."""
    one = evidence.of_seed(0)
    found = [(x, value) for x, kind, name in points if (value := one.sum((1, kind, name, arm)))]
    if not found:
        return
    half = [value.high - value.mean for _, value in found]
    means = [value.mean for _, value in found]
    (line, inside), colour = STYLES[arm], COLOURS[arm if arm in COLOURS else points[0][1]]
    ax.errorbar(
        [x for x, _ in found], means, half, ls=line, marker=mark, mfc=inside, color=colour, ms=5, lw=1.2, capsize=2
    )
    for x, kind, name in points:
        others = [value for seed, value in evidence.top1(kind, name, arm).items() if seed]
        ax.plot([x] * len(others), others, ".", color=colour, ms=3)


def bars(
    ax: plt.Axes, evidence: Evidence, rows: Sequence[tuple[str, str]], title: str, kinds: Sequence[str] = ("vim",)
) -> None:
    """Training-free and re-trained accuracy of each row."""
    for place, (_, name) in enumerate(rows):
        for arm, shift in (("free", -0.15), ("brief", 0.15)):
            for kind in kinds:
                colour, inside = COLOURS[kind], STYLES[arm][1]
                if value := evidence.of_seed(0).sum((1, kind, name, arm)):
                    half = value.high - value.mean
                    ax.errorbar(
                        value.mean, place + shift, xerr=half, fmt="o", mfc=inside, color=colour, ms=5, capsize=2
                    )
                others = [top1 for seed, top1 in evidence.top1(kind, name, arm).items() if seed]
                ax.plot(others, [place + shift] * len(others), ".", color=colour, ms=3)
        if not any(evidence.top1(kind, name, arm) for arm in ARMS for kind in kinds):
            at = {"va": "center", "fontsize": 8, "color": "0.45", "transform": ax.get_yaxis_transform()}
            ax.text(0.02, place, MISSING, **at)
    ax.set_yticks(range(len(rows)), [words for words, _ in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set(title=title, xlabel="top-1 on 10,000 test images (%)")
    ax.title.set_fontsize(10)
    ax.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    sys.exit(main())
