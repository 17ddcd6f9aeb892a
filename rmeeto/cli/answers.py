"""What a model answers, as text, as JSON lines, and as an archive of embeddings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from rmeeto.cli.chosen import Chosen
from rmeeto.cli.on_files import record
from rmeeto.cli.outputs import check_output, unwritable
from rmeeto.errors import UserError, shown
from rmeeto.json_file import write_whole


def add_answer_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say how answers are given."""
    parser.add_argument("--json", action="store_true", help="a line of JSON for each answer")
    parser.add_argument("--top", type=int, default=5, help="classes of an answer (default: 5)")
    parser.add_argument(
        "--features",
        type=Path,
        metavar="FILE.npz",
        help="write what the head sees: files, features, probabilities",
    )


class Answers:
    """Prints answers as they come, and writes the archive at the end.

    Args:
        chosen: whose answers.
        options: of `add_answer_flags`.

    Raises:
        UserError: a number of classes or a file that cannot be.
    """

    def __init__(self, chosen: Chosen, options: argparse.Namespace) -> None:
        self.chosen, self.options = chosen, options
        self._kept: list[tuple[str, Any, Any, Any]] = []
        if options.top < 1:
            raise UserError(f"--top {options.top}; expected 1 or more.")
        path = options.features
        if path is not None and path.suffix != ".npz":
            raise UserError(f"--features {path}: expected a file that ends in .npz; give another name.")
        if path is not None:
            check_output(path, "--features")
        if not options.json:
            weights = shown(chosen.weights)
            print(f"{chosen.name}, weights {weights}, classes {shown(chosen.labels_from)}", flush=True)

    def features(self, x: Tensor) -> Tensor | None:
        """(B, C) what the head sees of an input; None where nobody wants it."""
        if self.options.features is None:
            return None
        model = self.chosen.model
        return model.forward_head(model.forward_features(x), pre_logits=True)

    def say(self, path: Path, shares: Tensor, features: Tensor | None = None, **place: Any) -> None:
        """Print an answer: probabilities (K,), features (C,) or None, and where in the file it is about."""
        if not bool(shares.isfinite().all()):
            raise UserError(f"{path}: the outputs are not finite: the model's weights are no use.")
        top = self.chosen.top(shares, self.options.top)
        if self.options.json:
            print(json.dumps(record(path, top, **place)), flush=True)
        else:
            where = " ".join(f"{name} {value:g}" for name, value in place.items())
            text = ", ".join(f"{shown(name)} {100 * share:.1f} %" for _, name, share in top)
            print(f"{shown(path)}{': ' + where if where else ''}: {text}", flush=True)
        if features is not None:
            self._kept.append((str(path), place, features.float().cpu().numpy(), shares.float().cpu().numpy()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Write the archive; where the command ends before its time, with what there is by then."""
        path = self.options.features
        if path is None or not self._kept:
            return
        try:
            self._write(path)
        except OSError as error:
            message = unwritable(path, "--features", error)
            if kind is None:
                raise UserError(message) from None
            print(f"error: {shown(message)}", file=sys.stderr)  # beside what has ended the command
        else:
            if kind is not None:
                count = len(self._kept)
                print(
                    f"{shown(path)} holds the {count} answer{'s' * (count > 1)} that there were until then",
                    file=sys.stderr,
                )

    def _write(self, path: Path) -> None:
        names, places, features, shares = zip(*self._kept)
        arrays = {name: np.array([place[name] for place in places]) for name in places[0]}
        arrays |= {"files": np.array(names), "features": np.stack(features), "probabilities": np.stack(shares)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: np.savez(file, **arrays))
