"""Variables of the recipes, with a stand-in for Python that writes down what it is started with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from random import Random

from tests.fuzz.case import Case, Kind, Refused, Wrong
from tests.fuzz.mutate import some_text
from tests.recipes import ROOT, launch

RECIPES = {
    "table": ROOT / "image_task" / "exp_sh" / "tab2" / "vim_tiny.sh",
    "digits": ROOT / "image_task" / "exp_sh" / "digits" / "retrain.sh",
}
SWITCHES = ("DRY_RUN", "CHECK", "SMOKE", "RESUME", "RELEASED")
COUNTS = {
    "NPROC": (1, 4096),
    "NNODES": (1, 65536),
    "NODE_RANK": (0, 65535),
    "MASTER_PORT": (1, 65000),
    "SEED": (0, 2**31 - 1),
}
PATHS = ("DATA", "WEIGHTS", "RUNS")
ON, OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
WORDS = (*ON, *OFF, "YES", "oN", "2", "08", "0x1", " 1", "1 ", "2.5", "PATH[$(touch owned)]",
"a[`touch owned`]", "1;touch owned",
         "$(touch owned)", "-n", "--eval", "data set", "../x", "/proc/self/cwd/runs", "~", "*", "'", '"', "\\",
         "-")  # fmt: skip
NAMES = (*SWITCHES, *COUNTS, *PATHS, "MASTER_ADDR")


def seeds() -> Mapping[str, bytes]:
    return dict.fromkeys(RECIPES, b"{}")


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    given = {}
    for name in rng.sample(NAMES, rng.choice((1, 1, 2, 3))):
        value = some_text(rng, WORDS) if rng.random() < 0.6 else rng.choice((*ON, *OFF, "2", "4000"))
        given[name] = value.replace("\0", "0").encode(errors="replace").decode()
        if name == "RUNS":  # a smoke run makes and removes what it says
            given[name] = "r/" + given[name].replace("..", "__")
    return Case(json.dumps(given).encode(), rng.choice(list(seeds)))


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    given = json.loads(case.data)
    here = Path.cwd()
    process, commands = launch(RECIPES[case.seed], here, **given)
    if (here / "owned").exists():
        raise Wrong("a value was run as a command")
    text = process.stderr
    if process.returncode not in (0, 2):
        raise Wrong(f"exit code {process.returncode}: {text}")
    if re.search(r"unbound variable|syntax error|line \d+:|command not found", text):
        raise Wrong(f"bash complains: {text}")
    valid = _valid(given)
    if process.returncode:
        if commands:
            raise Wrong(f"refused after {len(commands)} commands: {text}")
        if valid and case.seed == "digits" and given.get("RELEASED", "").lower() not in ON and _harmless(given):
            raise Wrong(f"refused without need: {text}")
        raise Refused(text)
    if not valid:
        raise Wrong(f"{given} was accepted: {process.stdout}")
    _same(given, commands, here)
    return f"{len(commands)} commands"


def _valid(given: Mapping[str, str]) -> bool:
    switches = all(given.get(name, "").lower() in (*ON, *OFF) for name in SWITCHES)
    counts = all(_count(given.get(name, ""), least, most) for name, (least, most) in COUNTS.items())
    return (
        switches and counts and (not given.get("NODE_RANK") or int(given["NODE_RANK"]) < int(given.get("NNODES") or 1))
    )


def _count(text: str, least: int, most: int) -> bool:
    return not text or (re.fullmatch(r"[0-9]{1,10}", text) is not None and least <= int(text) <= most)


def _harmless(given: Mapping[str, str]) -> bool:
    """Nothing else that may be refused: several machines without an address, folders that cannot be made."""
    return int(given.get("NNODES") or 1) == 1 and not given.get("MASTER_ADDR") and not any(given.get(n) for n in PATHS)


def _same(given: Mapping[str, str], commands: list[list[str]], here: Path) -> None:
    """Every command says what the variables say."""
    on = {name: given.get(name, "").lower() in ON for name in SWITCHES}
    if not commands:
        raise Wrong("accepted, and nothing was run")
    for command in commands:
        flags = {
            "--dry_run": on["DRY_RUN"] and not on["CHECK"], "--check": on["CHECK"], "--smoke": on["SMOKE"],
            "--resume": on["RESUME"],
        }  # fmt: skip
        for flag, expected in flags.items():
            if expected != (flag in command):
                raise Wrong(f"{given}, and the command is {command}")
        several = 1 if on["DRY_RUN"] or on["CHECK"] else int(given.get("NPROC") or 1)  # one process rehearses
        if several > 1 and command[command.index("--nproc_per_node") + 1] != str(several):
            raise Wrong(f"NPROC={several}: {command}")
        if given.get("DATA") and "--data-path" in command:
            expected = os.path.join(here, given["DATA"])
            if command[command.index("--data-path") + 1] != expected:
                raise Wrong(f"DATA={given['DATA']!r}: {command}")
        runs = os.path.join(here, given.get("RUNS") or "runs")
        if not command[command.index("--output_dir") + 1].startswith(runs + "/"):
            raise Wrong(f"RUNS={given.get('RUNS')!r}: {command}")


KIND = Kind(seeds, mutate, check, weight=3, batch=10, programs=("bash",))
