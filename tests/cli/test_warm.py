"""Processes that stay and run one command after the other: same numbers, and what goes wrong in one stops no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from rmeeto.cli import warm
from rmeeto.reader import digest
from tests import forked
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]
TASK = """
import os, signal, sys, time
def main(argv):
    what, *rest = argv
    if what == "raise":
        raise ValueError("of a row")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        print(os.getpid(), flush=True)
        time.sleep(1000)
    if what == "exit":
        sys.exit(int(rest[0]))
    print(what, os.getpid(), os.getcwd(), os.environ.get("WORD"), sys.argv[1:], sys.stdin.read())
    return int(rest[0]) if rest else 0
"""


def start(folder: Path, script: str, count: int = 1, **environment: str) -> subprocess.Popen:
    """A recipe of these lines, run by processes that stay."""
    (folder / "own_task").mkdir(exist_ok=True)
    (folder / "own_task/main.py").write_text(TASK)
    (folder / "recipe.sh").write_text(script)
    own = {"PYTHONPATH": f"{folder}:{ROOT}", **environment}
    return subprocess.Popen(
        [PYTHON, "-m", "rmeeto.cli.warm", str(count), "bash", "recipe.sh"],
        cwd=folder, env=os.environ | own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def run(folder: Path, script: str, count: int = 1) -> tuple[int, list[str], str]:
    process = start(folder, script, count)
    out, errors = process.communicate(timeout=forked.PATIENCE)
    return process.returncode, out.splitlines(), errors


def test_a_command_has_its_own_folder_environment_arguments_and_files(tmp_path):
    words = 'echo input | WORD="x y" "$PYTHON" -m own_task.main see 0 && echo "$JOBS $NPROC"'
    script = f'mkdir "a b" && cd "a b" && {words}\n'
    code, (line, _, numbers), errors = run(tmp_path, script, 3)
    assert (code, errors, numbers) == (0, "", "3 1")
    what, _, rest = line.split(maxsplit=2)
    assert (what, rest) == ("see", f"{tmp_path}/a b x y ['see', '0'] input")


def test_what_goes_wrong_in_one_command_stops_no_other(tmp_path):
    each = ("see", "see 2", "exit 4", "see", "raise", "see", "die", "see 5", "see")
    lines = [f'"$PYTHON" -m own_task.main {words} </dev/null; echo "= $?"' for words in each]
    code, out, errors = run(tmp_path, "\n".join([*lines, '"$PYTHON" -c \'print("plain")\'; exit 7']))
    assert (code, out[-1]) == (7, "plain")
    assert [int(line[2:]) for line in out if line.startswith("=")] == [0, 2, 4, 0, 1, 0, 1, 5, 0]
    first, after_2, after_4, after_raise, after_death, after_5 = (line.split()[1] for line in out if "see" in line)
    assert first == after_2, "who errs in a setting leaves the process as it was"
    assert len({first, after_4, after_raise, after_death}) == 4 and after_death != after_5
    assert "ValueError: of a row" in errors and errors.count("the process that was to run this is gone") == 1


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 143)])
def test_a_command_that_is_told_to_leave_leaves(name, code, tmp_path):
    script = (
        '"$PYTHON" -m own_task.main sleep >pid & while [ ! -s pid ]; do sleep 0.05; done\n'
        f'kill -{name} $!; wait $!; echo $?\n"$PYTHON" -m own_task.main see </dev/null\n'
    )
    _, (left, then, *_), errors = run(tmp_path, script)
    assert left == str(code) and then.startswith("see") and "Traceback" not in errors


def test_a_command_whose_caller_was_killed_does_not_go_on(tmp_path):
    script = (
        '"$PYTHON" -m own_task.main sleep >pid & while [ ! -s pid ]; do sleep 0.05; done\n'
        'kill -KILL $!\n"$PYTHON" -m own_task.main see </dev/null\n'
    )
    _, (line, *_), _ = run(tmp_path, script)
    assert line.split()[1] != (tmp_path / "pid").read_text().strip(), "another process, for that one has ended"


def test_the_processes_end_with_the_first_one(tmp_path):
    process = start(tmp_path, 'echo $PPID; "$PYTHON" -m own_task.main see </dev/null; exec sleep 1000\n', 2)
    server, pid = int(process.stdout.readline()), int(process.stdout.readline().split()[1])
    (recipe,) = (
        int(word) for word in Path(f"/proc/{server}/task/{server}/children").read_text().split() if sleeps(word)
    )
    os.kill(server, signal.SIGKILL)
    try:
        forked.until(lambda: not Path(f"/proc/{pid}").exists())
    finally:
        os.kill(recipe, signal.SIGKILL)
    process.communicate(timeout=forked.PATIENCE)


def sleeps(pid: str) -> bool:
    forked.until(lambda: Path(f"/proc/{pid}/comm").read_text() != "bash\n")
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


def test_a_schedulers_notice_reaches_what_runs_and_nothing_new_is_started(tmp_path):
    script = 'echo $PPID; "$PYTHON" -m own_task.main sleep; echo $?; "$PYTHON" -m own_task.main see; echo $?\n'
    process = start(tmp_path, script, 2)
    server, _ = int(process.stdout.readline()), process.stdout.readline()
    os.kill(server, signal.SIGTERM)
    out, errors = process.communicate(timeout=forked.PATIENCE)
    assert out.split() == ["1", "1"] and errors.count("with --resume goes on") == 2


@pytest.mark.parametrize("words", [[], ["0", "true"], ["two", "true"], ["65", "true"], ["2"]])
def test_a_call_that_cannot_be_meant_is_one_error(words, capsys):
    assert warm.main(words) == 2
    assert "expected the number of processes (1 to 64) and a command, such as" in capsys.readouterr().err


def test_a_command_that_is_not_there_is_one_error(capfd):
    pid = forked.fork(lambda: warm.main(["1", "/no/such"]))
    assert forked.wait([pid]) == [2]
    assert capfd.readouterr().err == "error: /no/such cannot be run: No such file or directory\n"


# Everything that is drawn: weights, order, augmentation, mixing, drop path, shuffled tokens.
ROW = "--model vim_nano_patch2_16 --data-set digits --batch-size 8 --num_workers 0 --device cpu --max_eval_batches 2"
DRAWN = f"{ROW} --max_train_batches 3 --epochs 1 --lr 1e-2 --drop-path 0.2 --mixup 0.8 --reprob 0.5"
ROWS = {
    "first": f"{DRAWN} --seed 1",
    "second": f"{DRAWN} --num_prune 4 --if_order --shuffle random --shuffle_rate 0.5 --seed 2",
    "tested": f"{ROW} --eval --num_prune 4 --if_order --model_pth first/last.pt --seed 3",
    "third": f"{DRAWN} --num_prune 4 --if_order --distill True --model_pth first/last.pt --seed 1",
}


def test_commands_in_one_process_have_the_numbers_of_processes_of_their_own(tmp_path):
    one, own = tmp_path / "one", tmp_path / "own"
    for folder in (one, own):
        folder.mkdir()
    commands = {name: ["-m", "image_task.main", *flags.split(), "--name", name] for name, flags in ROWS.items()}
    lines = [f'"$PYTHON" {" ".join(words)} --output_dir . || exit 1' for words in commands.values()]
    code, _, errors = run(one, "\n".join(lines))
    assert code == 0, errors
    for words in commands.values():
        subprocess.run(
            [PYTHON, *words, "--output_dir", "."], cwd=own, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    for name in ROWS:
        results = [json.loads((folder / name / "result.json").read_text()) for folder in (one, own)]
        assert results[0] == results[1], name
        logs = [(folder / name / "log.jsonl").read_text().splitlines() for folder in (one, own)]
        assert [without(line, "process") for line in logs[0]] == [without(line, "process") for line in logs[1]]
        if name != "tested":
            states = [torch.load(folder / name / "last.pt", weights_only=True)["model"] for folder in (one, own)]
            assert digest(states[0]) == digest(states[1]), name
    threads = {json.loads((one / name / "env.json").read_text())["threads"] for name in ROWS}
    assert len(threads) == 1


def without(line: str, name: str) -> dict:
    return {key: value for key, value in json.loads(line).items() if key != name}
