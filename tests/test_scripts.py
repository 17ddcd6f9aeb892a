"""What every script does with its arguments, and where it starts from."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.recipes import ROOT
from tests.warm import PYTHON

TINY = ROOT / "image_task" / "exp_sh" / "tab2" / "vim_tiny.sh"
ALL = ROOT / "image_task" / "exp_sh" / "fashion" / "all.sh"


@pytest.mark.parametrize("recipe", [TINY, ALL])
def test_arguments_are_refused(tmp_path, recipe):
    command = ["bash", str(recipe), "--epochs", "3"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stdout) == (2, "")
    assert re.search("(a recipe|all.sh) takes no arguments, and got --epochs 3", process.stderr)


@pytest.mark.parametrize("recipe", [TINY, ALL, ROOT / "exp_sh/docs.sh", ROOT / "exp_sh/test.sh"])
def test_help_is_the_recipes_header(tmp_path, recipe):
    process = subprocess.run(["bash", str(recipe), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0 and not process.stderr and not list(tmp_path.iterdir())
    assert process.stdout.startswith(recipe.read_text().splitlines()[1].removeprefix("# "))


def test_a_smoke_run_has_the_folder_of_its_recipe_wherever_it_is_started(tmp_path):
    named = set()
    for where, script in ((ROOT, TINY.relative_to(ROOT)), (TINY.parent, Path(TINY.name)), (tmp_path, TINY)):
        environment = os.environ | {"SMOKE": "1", "DRY_RUN": "1", "RUNS": str(tmp_path), "PYTHON": PYTHON, "NPROC": "1"}
        command = ["bash", str(script)]
        process = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=300)
        named |= set(re.findall(r"--output_dir[\s\\]+(\S+)", process.stdout))
    assert len(named) == 1 and named.pop().endswith("smoke/image_task/tab2-vim_tiny/tab2")
