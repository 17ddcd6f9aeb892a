"""The documents' code runs as it stands: files, Python and shell of each section, one behind the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'^```(python|bash)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def sections(name: str) -> dict[str, list[tuple[str, str, str]]]:
    """By heading, its blocks of code: (language, file that it is, code)."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / name).read_text(), flags=re.MULTILINE)
    found = {title: BLOCK.findall(text) for title, text in zip(parts[1::2], parts[2::2])}
    return {title: blocks for title, blocks in found.items() if blocks}


CASES = [(name, title) for name in ("extend.md", "measure.md") for title in sections(name)]


@pytest.mark.parametrize(("name", "title"), CASES)
def test_a_section_runs(name, title, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "REPOSITORY": str(ROOT),
        "DIGITS": str(ROOT / "image_task/exp_sh/digits/dense.safetensors"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for language, file, code in sections(name)[title]:
        if file:
            (tmp_path / file).write_text(code)
            continue
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_every_document_names_its_headings_once():
    for path in (ROOT / "docs").glob("*.md"):
        titles = re.findall(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)
        assert len(titles) == len(set(titles)), path.name


def test_the_reference_is_that_of_the_code():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from reference import reference
    finally:
        sys.path.remove(str(ROOT / "docs"))
    assert (ROOT / "docs" / "reference.md").read_text() == reference(), "run python docs/reference.py"


def test_the_reference_names_every_variable_and_file():
    text = (ROOT / "docs" / "reference.md").read_text()
    folders = ("rmeeto", "image_task", "video_task", "exp_sh")
    sources = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh")
    ]
    variables = {name for path in sources for name in re.findall(r"\bRMEETO_[A-Z]+\b", path.read_text())}
    assert variables <= set(re.findall(r"\bRMEETO_[A-Z]+\b", text))
    engine = [path for path in sources if path.parent.name == "engine"]
    files = {name for path in engine for name in re.findall(r'"([a-z.]+\.(?:pt|jsonl?))"', path.read_text())}
    assert files >= {"config.json", "last.pt"} and all(f"`{file}`" in text for file in files), files
