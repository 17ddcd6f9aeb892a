"""SECURITY.md promises nothing that no test holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions_of(file: str) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_is_named_exists():
    named = TEST.findall(TEXT)
    files = {file: functions_of(file) for file, _ in named if (ROOT / file).is_file()}
    assert named and not [f"{file}::{name}" for file, name in named if name not in files.get(file, set())]


def test_every_promise_names_a_test():
    promised = TEXT.partition("## What is promised")[2].partition("\n## ")[0]
    rows = [line for line in promised.splitlines() if line.startswith("| **")]
    assert len(rows) >= 8 and all(TEST.search(row) for row in rows)


def test_what_is_not_promised_and_how_to_report_are_said():
    assert re.findall("^## (.*)", TEXT, re.MULTILINE) == [
        "What is not trusted",
        "What is promised",
        "What is not promised",
        "How to report",
    ]
    for word in ("torchrun", "all network interfaces", "GPU's memory", "shared with enemies"):
        assert word in " ".join(TEXT.split())
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text()
