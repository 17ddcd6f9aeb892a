"""exp_sh/venv.sh, the set-up shared by quickstart.sh and test.sh, tried in a small repository of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rmeeto.cli.quickstart import run_quickstart

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with venv.sh, requirements that need no download, and a command that prints its Python."""
    root = tmp_path / "a repository"
    (root / "exp_sh").mkdir(parents=True)
    shutil.copy(ROOT / "exp_sh" / "venv.sh", root / "exp_sh")
    (root / "requirements.txt").write_text("# nothing\n")
    (root / "exp_sh" / "where.sh").write_text(
        'set -euo pipefail\nsource "$(dirname "$0")/venv.sh"\n"$PYTHON" -c "import sys; print(sys.prefix)"\n'
    )
    return root


def set_up(repository: Path, **env: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key not in {"RMEETO_VENV", "PYTHON"}}
    return subprocess.run(
        ["bash", str(repository / "exp_sh" / "where.sh")],
        env={**clean, **env},
        cwd=repository.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_environment_is_made_once_and_again_when_requirements_change(repository):
    first = set_up(repository)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == str(repository / ".venv")
    assert set_up(repository).stdout.splitlines() == [str(repository / ".venv")]

    (repository / "requirements.txt").write_text("not a requirement\n")
    assert set_up(repository).returncode != 0
    assert set_up(repository).returncode != 0, "a failed install must not count as done"

    (repository / "requirements.txt").write_text("# something else\n")
    assert "installing" in set_up(repository).stdout


def test_relative_environment_belongs_to_the_caller(repository):
    (repository.parent / "mine").mkdir()
    (repository.parent / "mine" / "notes.txt").write_text("keep")
    result = set_up(repository, RMEETO_VENV="mine")
    assert result.returncode == 1
    assert str(repository.parent / "mine") in result.stderr and "not a virtual environment" in result.stderr
    assert [path.name for path in (repository.parent / "mine").iterdir()] == ["notes.txt"]


SCRIPTS = ["exp_sh/quickstart.sh", "video_task/exp_sh/quickstart.sh"]


def start(script: str, argument: str, environment: Path) -> subprocess.CompletedProcess:
    """A script of this repository where there is no environment yet."""
    return subprocess.run(
        ["bash", str(ROOT / script), argument],
        env={**os.environ, "RMEETO_VENV": str(environment), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("script", [*SCRIPTS, "exp_sh/test.sh"])
@pytest.mark.parametrize("argument", ["-h", "--help"])
def test_help_installs_nothing(script, argument, tmp_path):
    result = start(script, argument, tmp_path / "venv")
    assert (result.returncode, result.stderr) == (0, "")
    header = [line for line in (ROOT / script).read_text().splitlines()[1:] if line.startswith("# ")]
    assert result.stdout.splitlines() == [line.removeprefix("# ") for line in header]
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_installs_nothing(script, tmp_path):
    result = start(script, "--nonsense=3", tmp_path / "venv")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: unknown flag --nonsense; there are --output_dir --seed --weights.\n"
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_relative_paths_lie_where_the_user_is(script, tmp_path):
    venv, user = tmp_path / "venv", tmp_path / "where the user is"
    (venv / "bin").mkdir(parents=True)
    user.mkdir()
    shutil.copy(ROOT / "requirements.txt", venv)
    python = venv / "bin" / "python"
    python.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    command = ["bash", os.path.relpath(ROOT / script, user), "--output_dir", "mine", "--weights", "w.pth"]
    environment = {**os.environ, "RMEETO_VENV": "../venv"}
    done = subprocess.run(command, cwd=user, env=environment, capture_output=True, text=True, timeout=300)
    where, program, _, default, *given = done.stdout.splitlines()
    assert where == str(user) and given == command[2:]
    assert Path(program).samefile(ROOT / script.split("/")[0].replace("exp_sh", "image_task") / "quickstart.py")
    assert default.startswith(f"{ROOT}/runs/quickstart"), "where none is given, beside what recipes leave"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_flags_that_there_are(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_quickstart(["--help"], "", "", Path(), lambda: None)
    known = set(re.findall(r"--\w+", capsys.readouterr().out)) - {"--help"}
    text = (ROOT / script).read_text()
    assert known == set(re.findall("^# (--\\w+)", text, re.MULTILINE))
    assert known == set(re.search('^flags="(.*)"', text, re.MULTILINE)[1].split())


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        ("exit 1", "no Python 3.11 or newer"),
        ('[[ "$*" != *ensurepip* ]]', "has no venv module"),
    ],
)
def test_unusable_python_is_named(repository, tmp_path, fake, message):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "cmp", "ls", "cp"):
        (tools / name).symlink_to(shutil.which(name))
    python = tools / "python3"
    python.write_text(f"#!{shutil.which('bash')}\n{fake}\n")
    python.chmod(0o755)
    result = set_up(repository, PATH=str(tools))
    assert result.returncode == 1
    assert message in result.stderr
    assert not (repository / ".venv").exists()
