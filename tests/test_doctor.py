"""The doctor reports whatever is there, and never fails itself."""

from __future__ import annotations

import importlib
import os
import subprocess
from importlib import metadata

import pytest

from rmeeto import doctor
from tests.warm import PYTHON


def report(capsys) -> list[str]:
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and max(map(len, lines)) <= 80
    assert not any("Traceback" in line for line in lines)
    return lines


def value(lines: list[str], name: str) -> str:
    """What an item says, its further lines included."""
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(name + " "))
    more = [line.strip() for line in lines[start + 1 :]]
    further = next((i for i, line in enumerate(lines[start + 1 :]) if not line.startswith(" " * 29)), len(more))
    return " ".join([lines[start].strip().removeprefix(name).strip(), *more[:further]])


def test_versions_devices_and_every_operator_are_named(capsys):
    lines = report(capsys)
    assert value(lines, "torch") == metadata.version("torch")
    assert value(lines, "cpu").endswith("threads")
    for operator in ("selective_scan", "bidirectional_scan", "conv1d", "add_rms_norm"):
        assert value(lines, f"{operator} on cpu") in ("cpp", "torch")
    start = next(i for i, line in enumerate(lines) if "selective_scan on cpu" in line)
    ladder = [line.split()[0] for line in lines[start + 1 : start + 6]]
    assert ladder == ["triton", "upstream", "cpp", "torch", "naive"]
    assert "for cuda only" in lines[start + 1]


def test_missing_and_broken_packages_are_findings(monkeypatch, capsys):
    version, import_module = metadata.version, importlib.import_module

    def find(name):
        if name in ("av", "timm"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    def load(name, *arguments):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore of it")
        return import_module(name, *arguments)

    monkeypatch.setattr(metadata, "version", find)
    monkeypatch.setattr(importlib, "import_module", load)
    lines = report(capsys)
    assert value(lines, "av") == "not installed (for video)"
    assert value(lines, "timm") == "not installed, but needed"
    torchvision = value(lines, "torchvision")
    assert "cannot be imported: operator torchvision::nms does not exist" in torchvision
    assert "more of it" not in torchvision


def test_a_wrong_backend_is_a_finding(monkeypatch, capsys):
    monkeypatch.setenv("RMEETO_BACKEND", "fastest")
    lines = report(capsys)
    assert value(lines, "RMEETO_BACKEND") == "fastest"
    assert "RMEETO_BACKEND='fastest'; expected one of" in value(lines, "conv1d on cpu")


def test_a_forced_backend_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("RMEETO_BACKEND", "naive")
    assert value(report(capsys), "selective_scan on cpu") == "naive"


def test_a_section_that_breaks_does_not_end_the_report(monkeypatch, capsys):
    def broken():
        yield "  first"
        raise OSError("cannot tell")

    sections = {"one": broken, "two": lambda: iter(["  second"])}
    monkeypatch.setattr(doctor, "SECTIONS", sections)
    assert [line.split()[0] for line in report(capsys)] == ["one", "first", "not", "two", "second"]


def test_without_a_compiler_it_says_so_and_ends_well(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path), "RMEETO_CACHE": str(tmp_path / "cache")}
    environment.pop("CXX", None)
    done = subprocess.run([PYTHON, "-m", "rmeeto.doctor"], capture_output=True, text=True, env=environment, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr
    assert "no C++ compiler" in value(lines, "compiler")
    assert value(lines, "selective_scan on cpu") == "torch"
    assert any(line.strip().startswith("cpp") and "no C++ compiler" in line for line in lines)
    assert "(empty)" in value(lines, "cache") and max(map(len, lines)) <= 80


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--nonsense", 2)])
def test_arguments_are_not_ignored(argument, code):
    command = [PYTHON, "-m", "rmeeto.doctor", argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code
    assert "usage: python -m rmeeto.doctor" in done.stdout + done.stderr and "versions" not in done.stdout


@pytest.mark.parametrize("missing", ["torch", "timm", "numpy"])
def test_a_package_that_cannot_be_imported_is_a_finding_and_no_more(missing):
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_module('rmeeto.doctor', run_name='__main__')"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr and max(map(len, lines)) <= 80
    assert "but it cannot be imported" in value(lines, missing)
    assert [line for line in lines if not line.startswith(" ")] == list(doctor.SECTIONS)
    if missing == "torch":
        assert value(lines, "not known").startswith("import of torch halted")
    else:
        assert value(lines, "selective_scan on cpu") in ("cpp", "torch")


@pytest.mark.gpu
def test_gpus_are_listed(capsys):
    lines = report(capsys)
    assert "compute capability" in value(lines, "cuda:0")
    assert value(lines, "selective_scan on cuda")
