"""Draw every figure from recorded results: `python fig/make.py`, or some by name: `python fig/make.py speed rules`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fig import digits, evidence, information, merged, overview, rules, speed
from fig.record import ROOT


@dataclass(frozen=True)
class Drawing:
    """A figure, what it is drawn from, and how."""

    path: Path
    data: list[Path]
    draw: Callable[[Path], object]


FIGURES = {
    "R_MeeTo": Drawing(ROOT / "fig" / "R_MeeTo.png", [Path(overview.__file__)], overview.overview),
    "speed": Drawing(ROOT / "fig" / "speed.png", speed.data(), speed.speed),
    "vis_exp": Drawing(ROOT / "fig" / "vis_exp.png", [merged.WEIGHTS], merged.vis_exp),
    "merged_digits": Drawing(ROOT / "fig" / "merged_digits.png", [digits.WEIGHTS], digits.merged_digits),
    "digits_accuracy": Drawing(ROOT / "fig" / "digits_accuracy.png", digits.ACCURACIES, digits.digits_accuracy),
    "rules": Drawing(rules.PICTURE, rules.data(), rules.draw),
    "information": Drawing(information.PICTURE, information.data(), information.draw),
    "evidence": Drawing(evidence.PICTURE, [evidence.RECORDS, evidence.RIGHT], lambda path: evidence.main([])),
}


def main() -> None:
    """Draw the figures that the command line names, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FIGURES)}; none: all")
    names = parser.parse_args().names or list(FIGURES)
    for name in names:
        if name not in FIGURES:
            parser.error(f"unknown figure {name!r}; expected some of {', '.join(FIGURES)}")
        FIGURES[name].draw(FIGURES[name].path)
        print(FIGURES[name].path.relative_to(ROOT))


if __name__ == "__main__":
    main()
