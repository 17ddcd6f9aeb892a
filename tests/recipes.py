"""Runs recipes with a stand-in for Python that writes down its arguments."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path

from image_task.config import Config
from image_task.flags import parse

ROOT = Path(__file__).resolve().parents[1]
# all.sh starts the others of its folder
RECIPES = sorted(set((ROOT / "image_task" / "exp_sh").glob("*/*.sh")) - {ROOT / "image_task/exp_sh/fashion/all.sh"})
TABLES = [recipe for recipe in RECIPES if recipe.parent.name.startswith("tab")]
VARIABLES = {
    "DRY_RUN",
    "CHECK",
    "SMOKE",
    "RESUME",
    "RELEASED",
    "DATA",
    "WEIGHTS",
    "RUNS",
    "NPROC",
    "NNODES",
    "NODE_RANK",
}
VARIABLES |= {"GPUS", "MAX_RESTARTS", *(name for name in os.environ if name.startswith("SLURM_"))}
VARIABLES |= {"MASTER_ADDR", "MASTER_PORT", "PYTHON", "RMEETO_VENV", "SEED", "FREE", "GRAPH", "JOBS"}

_STAND_IN = r"""#!/bin/sh
[ "$1" != -c ] || { echo 1; exit 0; }
record=$(dirname "$0")/commands
if [ "$2" = rmeeto.cli.dry_runs ]; then
    shift 2
    while [ $# -gt 0 ]; do
        printf '%s\n' "$2"
        shift 2
        printf '%s\0' "$0" >> "$record"
        while [ $# -gt 0 ] && [ "$1" != -- ]; do printf '%s\0' "$1" >> "$record"; shift; done
        printf '\036' >> "$record"
        [ "${STAND_IN_FAILS:-0}" = 0 ] || exit "$STAND_IN_FAILS"
    done
    exit 0
fi
{ printf '%s\0' "$0" "$@"; printf '\036'; } >> "$record"
exit "${STAND_IN_FAILS:-0}"
"""

Process = subprocess.CompletedProcess


def launch(recipe: Path, folder: Path, cwd: Path | None = None, **env: str) -> tuple[Process, list[list[str]]]:
    """Run a recipe; returns the finished process and the argument lists that its Python was started with.

    Args:
        recipe: its script.
        folder: where the stand-in is put and, below `runs`, the run folders go.
        cwd: where it is started; None for `folder`.
        env: variables of exp_sh/launch.sh; PYTHON replaces the stand-in.
    """
    python, record = folder / "python", folder / "commands"
    python.write_text(_STAND_IN)
    python.chmod(0o755)
    record.unlink(missing_ok=True)
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    process = subprocess.run(
        ["bash", str(recipe)],
        env={**clean, "PYTHON": str(python), "RUNS": str(folder / "runs"), **env},
        cwd=cwd or folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    commands = record.read_text().split("\036")[:-1] if record.exists() else []
    return process, [command.split("\0")[:-1] for command in commands]


def task_arguments(command: list[str]) -> list[str]:
    """What a command of `launch` passes to the task's main program."""
    return command[[word.endswith("_task.main") for word in command].index(True) + 1 :]


@functools.cache
def plan(recipe: Path, *variables: str) -> list[tuple[Config, list[str]]]:
    """The settings of a recipe's commands as a dry run has them, each with its notices; folders are below `runs`.

    Args:
        recipe: its script.
        variables: of RELEASED and SMOKE, those that are set.
    """
    with tempfile.TemporaryDirectory() as name:
        process, commands = launch(recipe, Path(name), DRY_RUN="1", **dict.fromkeys(variables, "1"))
        assert process.returncode == 0, process.stderr
        assert not Path(name, "runs").exists(), "a dry run touches nothing"
        arguments = [[word.replace(name + "/", "") for word in task_arguments(command)] for command in commands]
    parsed = [parse(words) for words in arguments]
    assert all(dry_run for _, dry_run, _ in parsed)
    return [(config, notices) for config, _, notices in parsed]


def has_quirks(recipe: Path) -> bool:
    """Whether RELEASED=1 changes something in a recipe."""
    return "released=" in recipe.read_text()


def title(recipe: Path) -> str:
    """`tab2/vim_tiny`."""
    return f"{recipe.parent.name}/{recipe.stem}"
