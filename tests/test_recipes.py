"""The recipes and exp_sh/launch.sh, which starts their commands.

Most tests run the recipes with a stand-in for Python that writes down its arguments; `flags.parse` reads them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from image_task.flags import parse
from image_task.main import sketch

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "image_task" / "exp_sh").glob("*/*.sh"))
VARIABLES = {
    "DRY_RUN",
    "SMOKE",
    "RESUME",
    "DATA",
    "WEIGHTS",
    "RUNS",
    "NPROC",
    "NNODES",
    "NODE_RANK",
    "MASTER_ADDR",
}
VARIABLES |= {"MASTER_PORT", "PYTHON", "RMEETO_VENV", "SEED"}
TINY = ROOT / "image_task" / "exp_sh" / "tab2" / "vim_tiny.sh"
RETRAIN = ROOT / "image_task" / "exp_sh" / "digits" / "retrain.sh"
DENSE = RETRAIN.with_name("dense.sh")


@pytest.fixture
def launch(tmp_path: Path):
    """Run a recipe; returns the finished process and the argument lists that its Python was started with."""
    record, python = tmp_path / "commands", tmp_path / "python"
    python.write_text(
        f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    sys.exit(print(1))
with open({str(record)!r}, "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
sys.exit(int(os.environ.get("STAND_IN_FAILS", 0)))
"""
    )
    python.chmod(0o755)

    def run(recipe: Path, cwd: Path = tmp_path, **env: str):
        record.unlink(missing_ok=True)
        clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        env = {"PYTHON": str(python), "RUNS": str(tmp_path / "runs"), **env}
        process = subprocess.run(
            ["bash", str(recipe)],
            env={**clean, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        lines = record.read_text().splitlines() if record.exists() else []
        return process, [json.loads(line) for line in lines]

    return run


def task_arguments(command: list[str]) -> list[str]:
    return command[command.index("image_task.main") + 1 :]


def name(recipe: Path) -> str:
    return f"{recipe.parent.name}/{recipe.stem}"


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_recipe_is_short_and_says_what_it_is(recipe):
    text = recipe.read_text()
    lines = text.splitlines()
    assert len(lines) <= 25
    assert lines[0] == "#!/usr/bin/env bash"
    assert os.access(recipe, os.X_OK)
    assert "set -euo pipefail" in lines
    for part in ("# Cost:", "# Paper:"):
        assert any(line.startswith(part) for line in lines), f"the header has no line {part!r}"
    assert not re.search(r"torchrun|nproc|CUDA_VISIBLE|master_|output_dir", text), "that belongs to launch.sh"
    subprocess.run(["bash", "-n", str(recipe)], check=True)


def test_index_names_every_recipe():
    index = (ROOT / "exp_sh" / "README.md").read_text()
    assert not [name(recipe) for recipe in RECIPES if f"{name(recipe)}.sh" not in index]


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_commands_are_valid_and_do_not_share_a_run_folder(recipe, launch, tmp_path):
    process, commands = launch(recipe, DRY_RUN="1")
    assert process.returncode == 0, process.stderr
    assert commands
    folders = []
    for command in commands:
        config, dry_run, notices = parse(task_arguments(command))
        assert dry_run
        assert not notices
        sketch(config)
        folders.append(config.folder)
    assert len(set(folders)) == len(folders)
    assert all(folder.is_relative_to(tmp_path / "runs" / recipe.parent.name) for folder in folders)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("stem", "r", "epochs", "ema"),
    [("vim_tiny", 5, 30, False), ("vim_small", 11, 15, False), ("vim_base", 11, 15, True)],
)
def test_table_2_is_the_papers_setting(stem, r, epochs, ema, launch):
    _, commands = launch(TINY.with_name(f"{stem}.sh"), DRY_RUN="1")
    *evaluations, training = [parse(task_arguments(command))[0] for command in commands]
    for config in (*evaluations, training):
        assert (config.merge.r, config.merge.interval, config.merge.odd) == (r, 2, False)
        assert (config.merge.metric, config.merge.distance, config.merge.mode) == ("X", "cosine", "sum")
        assert config.merge.keep_order and not config.merge.prune
        assert config.data.data_set == "IMNET"
    assert all(config.run.eval for config in evaluations)
    assert not training.run.eval, "re-training must train"
    assert training.merge.final_tokens is None
    assert training.distill.distill and training.distill.distill_weight == 0.5
    assert (training.data.batch_size, training.optim.accumulation, training.optim.epochs) == (128, 2, epochs)
    assert (training.optim.lr, training.optim.min_lr, training.optim.weight_decay) == (2e-5, 1e-6, 0.05)
    assert training.model.drop_path == 0.1
    assert (training.optim.model_ema, training.optim.model_ema_decay) == (ema, 0.99996)


def test_vim_tiny_is_evaluated_under_both_rules_for_the_last_merge(launch):
    _, commands = launch(TINY, DRY_RUN="1")
    configs = [parse(task_arguments(command))[0] for command in commands]
    assert [config.merge.final_tokens for config in configs if config.run.eval] == [None, 76]


def test_dry_run_prints_exactly_what_is_run(launch):
    env = {"DATA": "/data/image net", "NPROC": "2"}
    dry, _ = launch(TINY, DRY_RUN="1", **env)
    real, commands = launch(TINY, **env)
    printed = [shlex.split(line) for line in dry.stdout.splitlines()]
    assert printed == commands
    assert real.stdout == dry.stdout


def test_paths_from_the_user_are_relative_to_where_the_user_is(launch, tmp_path):
    _, commands = launch(TINY, DATA="imagenet", WEIGHTS="my weights", RUNS="results")
    config, _, _ = parse(task_arguments(commands[0]))
    assert config.data.data_path == str(tmp_path / "imagenet")
    assert config.model.model_pth == str(tmp_path / "my weights" / "vim_t_midclstok_76p1acc.pth")
    assert config.run.output_dir == str(tmp_path / "results" / "tab2")


def test_resume_reaches_every_command(launch):
    _, commands = launch(TINY, RESUME="1")
    assert commands and all(parse(task_arguments(command))[0].run.resume for command in commands)


def test_one_process_needs_no_launcher_and_several_get_torchrun(launch):
    _, alone = launch(RETRAIN)
    assert all(command[1:3] == ["-m", "image_task.main"] for command in alone)
    _, several = launch(RETRAIN, NPROC="4")
    expected = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "4",
        "-m",
        "image_task.main",
    ]
    assert all(command[1:8] == expected for command in several)
    assert [task_arguments(command) for command in several] == [task_arguments(command) for command in alone]


def test_several_machines_meet_at_a_port_of_its_own_for_each_command(launch):
    nodes = {"NNODES": "2", "NPROC": "8", "MASTER_ADDR": "host0", "MASTER_PORT": "4000"}
    _, first = launch(RETRAIN, NODE_RANK="0", **nodes)
    _, second = launch(RETRAIN, NODE_RANK="1", **nodes)
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        launcher = a[: a.index("image_task.main")]
        assert f"--nnodes 2 --node_rank 0 --master_addr host0 --master_port {4000 + index}" in " ".join(
            launcher
        )
        assert [x for x, y in zip(a, b, strict=True) if x != y] == ["0"]


def test_several_machines_without_an_address_are_refused(launch):
    process, commands = launch(RETRAIN, NNODES="2")
    assert process.returncode == 2
    assert "MASTER_ADDR" in process.stderr
    assert not commands


@pytest.mark.parametrize("mode", [{}, {"DRY_RUN": "1"}], ids=["run", "dry run"])
def test_a_failing_command_stops_the_recipe_with_its_exit_code(mode, launch):
    process, commands = launch(TINY, STAND_IN_FAILS="7", **mode)
    assert process.returncode == 7
    assert len(commands) == 1
    assert "launch: the command above" in process.stderr


def test_smoke_starts_in_a_fresh_folder_and_leaves_the_others(launch, tmp_path):
    old = tmp_path / "runs" / "smoke" / "digits-retrain" / "digits" / "result.json"
    kept = [
        tmp_path / "runs" / "digits" / "result.json",
        tmp_path / "runs" / "smoke" / "tab2-vim_tiny" / "result.json",
    ]
    for file in (old, *kept):
        file.parent.mkdir(parents=True)
        file.touch()
    launch(RETRAIN, SMOKE="1", DRY_RUN="1")
    assert old.exists(), "a dry run touches nothing"
    _, commands = launch(RETRAIN, SMOKE="1")
    assert not old.exists() and all(file.exists() for file in kept)
    for command in commands:
        config, _, _ = parse(task_arguments(command))
        assert config.run.smoke
        assert config.folder.is_relative_to(tmp_path / "runs" / "smoke" / "digits-retrain")


def test_python_without_torch_is_named(launch, tmp_path):
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    process, _ = launch(TINY, PYTHON=str(bare))
    assert process.returncode == 1
    assert "cannot import torch" in process.stderr


def test_smoke_and_dry_run_really_run(launch, tmp_path):
    real = {"PYTHON": sys.executable, "NPROC": "1", "CUDA_VISIBLE_DEVICES": ""}
    process, _ = launch(DENSE, SMOKE="1", **real)
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "runs" / "smoke").rglob("result.json"))) == 1
    process, _ = launch(DENSE, DRY_RUN="1", **real)
    assert process.returncode == 0, process.stderr
    assert len(process.stdout.splitlines()) == 1, "only the command is shown"
    process, _ = launch(DENSE, DRY_RUN="1", SEED="first", **real)
    assert process.returncode == 2
    assert "first" in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_every_recipe_smokes(recipe, launch):
    process, _ = launch(recipe, SMOKE="1", PYTHON=sys.executable, NPROC="1", CUDA_VISIBLE_DEVICES="")
    assert process.returncode == 0, process.stderr
