"""What an installation holds: the packages with what they read, and commands, usable from anywhere."""

from __future__ import annotations

import configparser
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rmeeto", "image_task", "video_task")
# The backend changes sys.argv.
BUILD = (
    "import sys; from setuptools import build_meta; _, kind, out = sys.argv; "
    "name = getattr(build_meta, kind)(out); print(name, file=open(out + '/name', 'w'))"
)


def build(kind: str, source: Path, out: Path) -> Path:
    """What `python -m build` makes of a source tree, without the network: a `sdist` or `wheel`."""
    out.mkdir()
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out / (out / "name").read_text().strip()


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The content of a wheel that was built from the source distribution of this repository."""
    pytest.importorskip("setuptools", "77")
    tmp_path = tmp_path_factory.mktemp("install")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    with tarfile.open(build("sdist", source, tmp_path / "sdist")) as tar:
        tar.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("rmeeto-*")
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path / "wheel")) as wheel:
        wheel.extractall(tmp_path / "installed")
    return tmp_path / "installed"


def test_everything_that_the_packages_read_is_in_the_wheel(installed):
    kinds = {".py", ".cpp", ".h", ".json", ".jsonl", ".safetensors"}
    inside = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.suffix in kinds and "__pycache__" not in path.parts
    }
    missing = {name for name in inside if not (installed / name).exists()}
    assert not {name for name in missing if not re.search(r"/example/", name)}
    assert {"rmeeto/ops/csrc/scan.cpp", "image_task/exp_sh/digits/dense.safetensors"} <= inside
    assert not [path.name for path in installed.iterdir() if path.name not in PACKAGES and path.suffix != ".dist-info"]


def metadata(installed: Path, name: str) -> str:
    (folder,) = installed.glob("*.dist-info")
    return (folder / name).read_text()


def test_the_oldest_python_is_named(installed):
    assert "\nRequires-Python: >=3.11\n" in metadata(installed, "METADATA")


def commands(installed: Path) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read_string(metadata(installed, "entry_points.txt"))
    return dict(parser["console_scripts"])


def test_the_readme_names_every_command(installed):
    named = set(re.findall(r"`(rmeeto-[a-z-]+)", (ROOT / "README.md").read_text()))
    assert named == set(commands(installed))


def test_packages_models_and_commands_work_from_another_folder(installed, tmp_path):
    code = (
        "import importlib, sys, image_task, rmeeto, timm, torch\n"
        "import image_task.models, video_task.models\n"
        "from image_task.quickstart import WEIGHTS\n"
        "from rmeeto.ops import build\n"
        "assert all(m.__file__.startswith(sys.argv[1]) for m in (rmeeto, image_task, image_task.models))\n"
        "model = timm.create_model('vim_nano_patch2_16', merge=rmeeto.MergeConfig(r=8)).eval()\n"
        "image_task.models.load_weights(model, WEIGHTS)\n"
        "print(tuple(model(torch.zeros(1, 3, 16, 16)).shape), build.origin())\n"
        "for target in sys.argv[2:]:\n"
        "    module, _, name = target.partition(':')\n"
        "    print(callable(getattr(importlib.import_module(module), name)))\n"
    )
    targets = commands(installed).values()
    command = [sys.executable, "-c", code, str(installed), *targets]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, *callables = done.stdout.splitlines()
    assert first.startswith("(1, 10) ") and callables == ["True"] * len(targets)


@pytest.mark.parametrize("task", ["image", "video"])
def test_a_command_reads_its_flags(task, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"rmeeto-{task}", "--nonsense"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which the command replaces
    assert importlib.import_module(f"{task}_task.__main__").main() == 2
    assert capsys.readouterr().err.startswith("error: unknown flag --nonsense")
