"""exp_sh/launch.sh, which starts the recipes' commands, and the form of the recipes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from image_task.flags import parse
from tests.recipes import RECIPES, ROOT, launch, plan, task_arguments, title
from tests.warm import PYTHON

TINY = ROOT / "image_task" / "exp_sh" / "tab2" / "vim_tiny.sh"
RETRAIN = ROOT / "image_task" / "exp_sh" / "digits" / "retrain.sh"
DENSE = RETRAIN.with_name("dense.sh")
INJECTION = "PATH[$(touch pwned)]"


@pytest.fixture(name="launch")
def launch_here(tmp_path: Path):
    """`launch`, with everything in the test's own folder."""

    def run(recipe: Path, **env: str):
        return launch(recipe, tmp_path, **env)

    return run


@pytest.mark.parametrize("recipe", RECIPES, ids=title)
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


def test_dry_run_prints_exactly_what_is_run(launch):
    env = {"DATA": "/data/image net", "NPROC": "2"}
    dry, _ = launch(TINY, DRY_RUN="1", **env)
    real, commands = launch(TINY, **env)
    printed = [shlex.split(line) for line in dry.stdout.replace(" \\\n", " ").splitlines()]
    assert printed == commands
    assert real.stdout == dry.stdout
    long = {word for line in commands for word in line if len(word) > 70}
    assert all(len(line) <= 80 or long & set(shlex.split(line.rstrip(" \\"))) for line in dry.stdout.splitlines())


def test_paths_from_the_user_are_relative_to_where_the_user_is(launch, tmp_path):
    _, commands = launch(TINY, DATA="imagenet", WEIGHTS="my weights", RUNS="results")
    config, _, _ = parse(task_arguments(commands[0]))
    assert config.data.data_path == str(tmp_path / "imagenet")
    assert config.model.model_pth == str(tmp_path / "my weights" / "vim_t_midclstok_76p1acc.pth")
    assert config.run.output_dir == str(tmp_path / "results" / "tab2")


def test_released_adds_what_the_recipe_names():
    plain, released = ([config for config, _ in plan(TINY, *set_)] for set_ in ([], ["RELEASED"]))
    assert plain[:2] == released[:2]
    assert (plain[2].merge.final_tokens, released[2].merge.final_tokens) == (None, 76)


def test_released_without_effect_is_refused(launch):
    process, commands = launch(DENSE, RELEASED="1")
    assert process.returncode == 2
    assert "RELEASED=1 has no effect" in process.stderr
    assert not commands


def test_resume_reaches_every_command(launch):
    _, commands = launch(TINY, RESUME="1")
    assert commands and all(parse(task_arguments(command))[0].run.resume for command in commands)


def test_trainings_alone_are_told_of_the_processes_that_they_are_meant_for(launch):
    _, commands = launch(TINY, PROCESSES="8")
    evaluated, trained = ([c for c in commands if ("--eval" in c) == wanted] for wanted in (True, False))
    assert evaluated and trained and all("--processes" not in command for command in evaluated)
    assert all(command[command.index("--processes") + 1] == "8" for command in trained)


def test_one_process_needs_no_launcher_and_several_get_torchrun(launch):
    _, alone = launch(RETRAIN)
    assert all(command[1:3] == ["-m", "image_task.main"] for command in alone)
    _, several = launch(RETRAIN, NPROC="4")
    expected = [
        "-m",
        "rmeeto.cli.launch",
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
        assert f"--nnodes 2 --node_rank 0 --master_addr host0 --master_port {4000 + index}" in " ".join(launcher)
        assert [x for x, y in zip(a, b, strict=True) if x != y] == ["0"]


def test_as_many_machines_as_come_meet_by_themselves_and_go_on(launch):
    _, commands = launch(RETRAIN, NNODES="2:4", GPUS="8", MASTER_ADDR="host0", MASTER_PORT="4000")
    for index, command in enumerate(commands):
        launcher = " ".join(command[1 : command.index("image_task.main")])
        assert launcher == (
            "-m rmeeto.cli.launch --nproc_per_node 8 --nnodes 2:4 --rdzv_backend c10d --rdzv_endpoint "
            f"host0:{4000 + index} --rdzv_id run{index} --max_restarts 3 -m"
        )
        assert "--resume" in command


def test_restarts_need_the_launcher_and_go_on(launch):
    _, (command, *_) = launch(RETRAIN, MAX_RESTARTS="2")
    assert command[2:8] == [
        "rmeeto.cli.launch",
        "--standalone",
        "--nproc_per_node",
        "1",
        "--max_restarts",
        "2",
    ]
    assert "--resume" in command


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"GPUS": "2", "NPROC": "3"}, "GPUS is 2 and NPROC is 3"),
        ({"NNODES": "2:"}, "NNODES is 2:: expected the fewest and the most"),
        ({"NNODES": "4:2", "MASTER_ADDR": "host0"}, "NNODES is 4:2: expected the smaller number first"),
        ({"NNODES": "1:2"}, "NNODES is 1:2 but MASTER_ADDR is not set"),
        ({"NNODES": f"1:{INJECTION}", "MASTER_ADDR": "host0"}, "expected a whole number from 1"),
        ({"MAX_RESTARTS": "many"}, "MAX_RESTARTS is many: expected a whole number"),
    ],
)
def test_numbers_of_machines_that_cannot_be_are_refused(variables, message, launch):
    process, commands = launch(DENSE, **variables)
    assert process.returncode == 2 and message in process.stderr and not commands


STEP = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "123456", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"}
STEP |= {"SLURM_STEP_NODELIST": "gpu[07-08,12]", "SLURM_NODEID": "1", "SLURM_PROCID": "3"}


def test_under_slurm_a_task_a_machine_starts_its_processes(launch):
    _, (command, *_) = launch(RETRAIN, SLURM_STEP_NUM_TASKS="2", NPROC="8", **STEP)
    launcher = " ".join(command[: command.index("image_task.main")])
    assert "--nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr gpu07 --master_port 23456" in launcher


@pytest.mark.parametrize(("gpus", "local"), [("0,1", "1"), ("1", "0")])
def test_under_slurm_several_tasks_a_machine_are_the_processes(gpus, local, launch, tmp_path):
    script = tmp_path / "env.sh"
    script.write_text(
        '#!/bin/sh\n[ "$1" != -c ] || { echo 1; exit 0; }\n'
        "echo $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT\n"
    )
    script.chmod(0o755)
    one = {"PYTHON": str(script), "CUDA_VISIBLE_DEVICES": gpus, "SLURM_RESTART_COUNT": "1"}
    process, _ = launch(DENSE, SLURM_STEP_NUM_TASKS="4", **STEP, **one)
    assert f"\n3 {local} 4 gpu07 23457\n" in process.stdout
    assert "-m image_task.main" in told(process)[0] and "--resume" in process.stdout


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1,n2", "n1"), ("n[3-5]", "n3"), ("a-b[001,003],c", "a-b001"), ("solo", "solo")]
)
def test_the_first_machine_of_a_list(nodes, first, launch):
    _, (command, *_) = launch(DENSE, SLURM_STEP_NUM_TASKS="2", **{**STEP, "SLURM_STEP_NODELIST": nodes})
    assert command[command.index("--master_addr") + 1] == first


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
    smoke = tmp_path / "runs" / "smoke" / "image_task" / "digits-retrain"
    launch(RETRAIN, SMOKE="1")
    old = smoke / "digits" / "result.json"
    kept = [
        tmp_path / "runs" / "digits" / "result.json",
        tmp_path / "runs" / "smoke" / "image_task" / "tab2-vim_tiny" / "result.json",
    ]
    for file in (old, *kept):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    launch(RETRAIN, SMOKE="1", DRY_RUN="1")
    assert old.exists(), "a dry run touches nothing"
    _, commands = launch(RETRAIN, SMOKE="1")
    assert not old.exists() and all(file.exists() for file in kept)
    for command in commands:
        config, _, _ = parse(task_arguments(command))
        assert config.run.smoke
        assert config.folder.is_relative_to(smoke)


def test_smoke_removes_nothing_that_it_has_not_made(launch, tmp_path):
    mine = tmp_path / "runs" / "smoke" / "image_task" / "digits-dense" / "thesis"
    mine.parent.mkdir(parents=True)
    mine.touch()
    process, commands = launch(DENSE, SMOKE="1")
    assert (process.returncode, commands, mine.exists()) == (2, [], True)
    assert "digits-dense is not of a smoke run" in process.stderr


def test_smoke_runs_of_image_and_video_have_folders_of_their_own(launch, tmp_path):
    launch(DENSE, SMOKE="1")
    launch(ROOT / "video_task" / "exp_sh" / "digits" / "dense.sh", SMOKE="1")
    marks = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("made-by-smoke")}
    assert marks == {f"runs/smoke/{task}/digits-dense" for task in ("image_task", "video_task")}


def test_clips_that_were_cut_short_are_not_taken_for_whole(tmp_path):
    python, fails = tmp_path / "encoder", tmp_path / "fails"
    python.write_text(
        '#!/bin/sh\n[ "$2" != video_task.data.digits ] || { mkdir -p "$3"; touch "$3/$(ls -A "$3" | wc -l)"; }\n'
        f'[ ! -e "{fails}" ]\n'
    )
    python.chmod(0o755)
    clips = tmp_path / "runs" / "digits-video" / "clips"
    fails.touch()
    recipe = ROOT / "video_task" / "exp_sh" / "digits" / "dense.sh"
    settings = {"PYTHON": str(python), "NPROC": "1"}
    assert launch(recipe, tmp_path, **settings)[0].returncode == 1
    assert not clips.exists()
    fails.unlink()
    for _ in range(2):
        assert launch(recipe, tmp_path, **settings)[0].returncode == 0
        assert len(list(clips.iterdir())) == 2, "once more after the failure, and never again"


SWITCHES = {"DRY_RUN": "--dry_run", "CHECK": "--check", "SMOKE": "--smoke", "RESUME": "--resume"}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_understand_the_usual_words(name, launch):
    for words, is_on in (("1 true YES On", True), ("0 False no OFF", False), ("", False)):
        for word in words.split() or [""]:
            process, commands = launch(DENSE, **{name: word})
            assert process.returncode == 0 and len(commands) == 1
            assert (SWITCHES[name] in commands[0]) == is_on, f"{name}={word}"


# Every name once, and every word once.
WORDS = ["2", "maybe", "-1", "01", " 1", "1 ", "true\n", "\x1b[2J", "\u202eabc", "$(touch pwned)"]


@pytest.mark.parametrize(
    ("name", "word"),
    [*((name, "maybe") for name in [*SWITCHES, "RELEASED"]), *(("SMOKE", word) for word in WORDS)],
)
def test_other_words_are_refused_by_the_name_of_the_switch(name, word, launch, tmp_path):
    process, commands = launch(TINY, **{name: word})
    assert (process.returncode, process.stdout, commands) == (2, "", [])
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"launch: {name} is ") and "expected 1 or 0" in line and line.isprintable()
    assert not (tmp_path / "pwned").exists()


NUMBERS = {"NPROC": 1, "MAX_RESTARTS": 0, "NNODES": 1, "NODE_RANK": 0, "MASTER_PORT": 1, "SEED": 0}


VALUES = [
    "2.5",
    "abc",
    "-1",
    "+1",
    "1e3",
    "0x10",
    "1 2",
    " 1",
    "1\n",
    "99999999999",
    "9" * 30,
    "\u0663",
    INJECTION,
]


@pytest.mark.parametrize(
    ("name", "value"), [*((name, INJECTION) for name in NUMBERS), *(("NPROC", value) for value in VALUES)]
)
def test_numbers_are_whole_and_nothing_else(name, value, launch, tmp_path):
    process, commands = launch(DENSE, **{"MASTER_ADDR": "host0", name: value})
    assert (process.returncode, process.stdout, commands) == (2, "", [])
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"launch: {name} is ") and "expected a whole number from" in line
    assert not (tmp_path / "pwned").exists()


def test_numbers_out_of_range_are_refused(launch):
    for name, least in NUMBERS.items():
        if least:
            assert f"{name} is 0: expected a whole number from 1" in launch(DENSE, **{name: "0"})[0].stderr
    assert "NODE_RANK is 2: expected less than NNODES, which is 2" in launch(DENSE, NODE_RANK="2", NNODES="2")[0].stderr


def test_numbers_may_have_leading_zeros(launch):
    _, (command,) = launch(DENSE, NPROC="08")
    assert command[command.index("--nproc_per_node") + 1] == "8"


@pytest.mark.parametrize("address", ["-x", "a b", "$(touch pwned)", "a;b", "\x1b"])
def test_a_wrong_address_is_refused(address, launch, tmp_path):
    process, commands = launch(DENSE, NNODES="2", MASTER_ADDR=address)
    assert process.returncode == 2 and "MASTER_ADDR is " in process.stderr and not commands
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("address", ["host0", "10.0.0.1", "node-3.cluster", "::1", "[fe80::1%eth0]"])
def test_an_address_is_a_name_or_a_number(address, launch):
    _, (command,) = launch(DENSE, NNODES="2", MASTER_ADDR=address)
    assert command[command.index("--master_addr") + 1] == address


def test_a_python_by_path_is_relative_to_where_the_user_is(launch, tmp_path):
    _, (command,) = launch(DENSE, PYTHON="./python")
    assert command[0] == f"{tmp_path}/./python"


def test_arguments_are_shown_escaped(tmp_path):
    command = ["bash", str(TINY), "\x1b[2J"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2 and process.stderr.strip().isprintable()


def test_python_without_torch_is_named(launch, tmp_path):
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    process, _ = launch(TINY, PYTHON=str(bare))
    assert process.returncode == 1
    assert "cannot import torch" in process.stderr


def told(process: subprocess.CompletedProcess) -> list[str]:
    """What a recipe prints, each command in one line."""
    return process.stdout.replace(" \\\n    ", " ").splitlines()


def test_smoke_and_dry_run_really_run(launch, tmp_path):
    real = {"PYTHON": PYTHON, "NPROC": "1", "CUDA_VISIBLE_DEVICES": ""}
    process, _ = launch(DENSE, SMOKE="1", **real)
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "runs" / "smoke").rglob("result.json"))) == 1
    process, _ = launch(DENSE, DRY_RUN="1", **real)
    assert process.returncode == 0, process.stderr
    assert len(told(process)) == 1, "only the command is shown"
    process, _ = launch(DENSE, CHECK="1", SEED="2147483647", **real)
    command, ready, *_ = told(process)
    assert command.startswith(PYTHON) and ready.startswith("ready: digits: 1437 images to train")
    process, _ = launch(DENSE.with_name("retrain.sh"), CHECK="1", **real)
    assert process.returncode == 2
    assert len(told(process)) == 1, "the first that would fail"
    assert "last.pt does not exist" in process.stderr
