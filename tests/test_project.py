"""The project's own shape: who imports whom, what is pinned, how long files are, and what must not be in them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rmeeto

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("rmeeto", "image_task", "video_task", "tests", "exp_sh", "benchmarks", "fig", "docs", ".ci")
TEXT = {
    ".py",
    ".sh",
    ".md",
    ".toml",
    ".txt",
    ".yml",
    ".yaml",
    ".json",
    ".jsonl",
    ".ipynb",
    ".cpp",
    ".svg",
    "",
}
PACKAGES = {"rmeeto", "image_task", "video_task"}

# DESIGN section 1: what each part may import of this project. The longest matching name decides.
ALLOWED = {
    "rmeeto.errors": set(),
    "rmeeto.json_file": {"rmeeto.errors"},
    "rmeeto.reader": {"rmeeto.reader", "rmeeto.json_file", "rmeeto.errors"},
    "rmeeto.imports": set(),
    "rmeeto.autocast": set(),
    "rmeeto.layout": set(),
    "rmeeto.merge": {"rmeeto.merge", "rmeeto.imports", "rmeeto.autocast"},
    "rmeeto.ops": {"rmeeto.ops", "rmeeto.errors", "rmeeto.autocast"},
    "rmeeto.ops.token_merge": {
        "rmeeto.ops",
        "rmeeto.errors",
        "rmeeto.merge",
        "rmeeto.autocast",
    },  # whose fast path it is
    "rmeeto.nn": {"rmeeto.nn", "rmeeto.merge", "rmeeto.ops", "rmeeto.errors"},
    "rmeeto.settings": {"rmeeto.errors"},
    "rmeeto.data": {"rmeeto.data", "rmeeto.errors"},
    "rmeeto.engine": {
        "rmeeto.engine",
        "rmeeto.settings",
        "rmeeto.errors",
        "rmeeto.json_file",
        "rmeeto.layout",
        "rmeeto.lock",
        "rmeeto.reader",
        "rmeeto.__version__",
    },
    "rmeeto.measure": {"rmeeto.measure", "rmeeto.merge", "rmeeto.nn", "rmeeto.layout", "rmeeto.errors"},
    "rmeeto": {"rmeeto"},
    "image_task": {"image_task", "rmeeto"},
    "video_task": {"video_task", "rmeeto"},
}
OUTSIDE = {"rmeeto.merge": {"torch"}, "rmeeto.ops": {"torch", "triton", "mamba_ssm", "causal_conv1d"}}


def project_files() -> list[Path]:
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    excluded = {"__pycache__", ".venv", ".git"}
    return sorted(
        path
        for path in [*inside, *ROOT.iterdir()]
        if path.is_file() and path.suffix in TEXT and not excluded & set(path.relative_to(ROOT).parts)
    )


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """Full names of everything that `source` imports, relative imports resolved, functions' bodies included."""
    names = set()
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{stem}.{alias.name}" for alias in node.names)
    return names


def within(name: str, parts: set[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def layer(module: str, table: dict[str, set[str]]) -> str | None:
    return max((part for part in table if within(module, {part})), key=len, default=None)


def import_violations(source: str, module: str, is_package: bool = False) -> list[str]:
    names = imported(source, module, is_package)
    ours = {name for name in names if name.split(".")[0] in PACKAGES}
    outside = {name for name in names - ours if name.split(".")[0] not in sys.stdlib_module_names}
    inside_layer, outside_layer = layer(module, ALLOWED), layer(module, OUTSIDE)
    wrong = {name for name in ours if inside_layer and not within(name, ALLOWED[inside_layer])}
    wrong |= {name for name in outside if outside_layer and not within(name, OUTSIDE[outside_layer])}
    return [f"{module} imports {name}" for name in sorted(wrong)]


def test_imports_go_one_way():
    violations = []
    for path in project_files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES:
            violations += import_violations(path.read_text(), module_name(path), path.name == "__init__.py")
    assert not violations


def test_only_the_command_lines_read_arguments():
    readers = {
        module_name(path)
        for path in project_files()
        if path.suffix == ".py"
        and path.relative_to(ROOT).parts[0] == "rmeeto"
        and "argparse" in imported(path.read_text(), module_name(path), path.name == "__init__.py")
    }
    allowed = {"rmeeto.cli", "rmeeto.doctor", "rmeeto.weights"}  # the last: checkpoints hold a Namespace
    assert {name for name in readers if not within(name, allowed)} == set()


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import numpy", "rmeeto.merge.matching"),
        ("from rmeeto.nn import BiMamba", "rmeeto.merge.apply"),
        ("from ..nn import BiMamba", "rmeeto.ops.backend"),
        ("from rmeeto import merge", "rmeeto.engine.loop"),
        ("def f():\n    import image_task.models", "rmeeto.doctor"),
        ("from image_task.config import DataConfig", "video_task.main"),
    ],
)
def test_an_import_the_wrong_way_is_seen(source, module):
    assert import_violations(source, module)


def lines_in_errors(source: str) -> list[int]:
    """Where a UserError's text has a line end, which would be shown as \\n."""
    return [
        part.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error")
        for argument in node.args
        for part in ast.walk(argument)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.endswith("\n")
    ]


def test_lines_of_an_error_are_arguments_of_their_own():
    assert lines_in_errors('UserError(f"{a} is wrong\\n" f"{advice}")')
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in project_files()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES | {"benchmarks"}
        for line in lines_in_errors(path.read_text())
    ]
    assert not found


# `rmeeto.errors.UserError` says which error is raised; these give their callers a reason, or refuse an argument.
VALUE_ERRORS = {
    "rmeeto.merge", "rmeeto.nn", "rmeeto.ops", "rmeeto.patch", "image_task.models", "video_task.models",
    "rmeeto.imports", "rmeeto.json_file", "rmeeto.reader", "rmeeto.data.pictures", "rmeeto.engine.verify",
    "image_task.datasets", "image_task.tars", "video_task.data.decode", "video_task.data.lists", "video_task.data.pyav",
    "video_task.data.transforms",
}  # fmt: skip
USER_ERRORS = {"rmeeto.ops.backend"}  # of the lower layers: what the machine and its environment allow


@pytest.mark.parametrize(
    ("error", "outside"),
    [("ValueError", VALUE_ERRORS), ("UserError", {"rmeeto.merge", "rmeeto.nn", "rmeeto.ops"})],
)
def test_one_rule_says_which_error_is_raised(error, outside):
    raising = {
        module_name(path)
        for path in project_files()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and getattr(getattr(node.exc, "func", None), "id", "") == error
    }
    found = {name for name in raising if within(name, outside)}
    assert (raising - found if error == "ValueError" else found - USER_ERRORS) == set()


def requirements() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def ranges() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {canonicalize_name(item.name): item for item in map(Requirement, declared)}


def test_requirements_are_few_and_exact():
    pins = requirements()
    assert len(pins) <= 15
    for pin in pins.values():
        assert [spec.operator for spec in pin.specifier] == ["=="], f"{pin} is not an exact version"


def test_pins_lie_within_the_ranges_of_pyproject():
    declared = ranges()
    for name, pin in requirements().items():
        assert name in declared, f"{name} is pinned but not declared in pyproject.toml"
        version = next(iter(pin.specifier)).version
        assert declared[name].specifier.contains(version), f"{pin} is outside {declared[name]}"


def test_every_dependency_of_the_package_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {canonicalize_name(Requirement(item).name) for item in project["dependencies"]} <= set(requirements())


def test_one_version_number():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changelog = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog and changelog[1] == project["version"] == rmeeto.__version__


def test_python_files_are_at_most_400_lines():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in project_files() if p.suffix == ".py"}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_main_programs_are_at_most_90_lines():
    for task in ("image_task", "video_task"):
        assert len((ROOT / task / "main.py").read_text().splitlines()) <= 90


def test_no_machine_paths():
    path = re.compile(r"(?<![\w.])/(?:work|home|root|Users|opt|tmp/(?:w|venv))/[\w.]+")
    found = []
    for file in project_files():
        if file.name == "LICENSE" or file == Path(__file__):
            continue
        for number, line in enumerate(file.read_text().splitlines(), 1):
            found += [f"{file.relative_to(ROOT)}:{number}: {match[0]}" for match in path.finditer(line)]
    assert not found
