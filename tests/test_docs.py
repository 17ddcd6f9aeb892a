"""The documents' code runs as it stands: files, Python and shell of each section, one behind the other."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'^```(python|bash)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def sections(name: str) -> dict[str, list[tuple[str, str, str]]]:
    """By heading, its blocks of code: (language, file that it is, code)."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / name).read_text(), flags=re.MULTILINE)
    found = {title: BLOCK.findall(text) for title, text in zip(parts[1::2], parts[2::2])}
    return {title: blocks for title, blocks in found.items() if blocks}


# Their sections follow from each other; those of the other documents stand alone.
STORIES = ("own-pictures.md", "video.md")
HOURS = ("evidence.md",)  # its recipes are tested by themselves
DOCUMENTS = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
CASES = [(name, title) for name in DOCUMENTS if name not in (*STORIES, *HOURS) for title in sections(name)]


@pytest.mark.parametrize(("name", "title"), [*CASES, *((name, None) for name in STORIES)])
def test_a_section_runs(name, title, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "REPOSITORY": str(ROOT),
        "DIGITS": str(ROOT / "image_task/exp_sh/digits/dense.safetensors"),
        "CLIPS": str(ROOT / "video_task/exp_sh/digits/retrained.safetensors"),
        "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
        "PYTHON": PYTHON,
    }
    found = sections(name)
    for language, file, code in found[title] if title else [block for part in found.values() for block in part]:
        if file:
            (tmp_path / file).write_text(code)
            continue
        command = [PYTHON, "-c", code] if language == "python" else ["bash", "-euc", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
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
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh")]
    variables = {name for path in sources for name in re.findall(r"\bRMEETO_[A-Z]+\b", path.read_text())}
    assert variables <= set(re.findall(r"\bRMEETO_[A-Z]+\b", text))
    engine = [path for path in sources if path.parent.name == "engine"]
    files = {name for path in engine for name in re.findall(r'"([a-z.]+\.(?:pt|jsonl?))"', path.read_text())}
    assert files >= {"config.json", "last.pt"} and all(f"`{file}`" in text for file in files), files


def test_the_differences_name_tests_that_are_there():
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", (ROOT / "docs" / "differences.md").read_text())
    assert len(named) >= 15
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"


def test_links_lead_somewhere():
    """Files and headings, of every document; those of the web are not asked."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for document in documents:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            path, _, anchor = target.partition("#")
            if re.match(r"https?:", target):
                continue
            found = document.parent / path if path else document
            assert found.exists(), f"{document.name}: {target}"
            if anchor and found.suffix == ".md":
                titles = re.findall(r"^#+ (.+)$", found.read_text(), flags=re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in slugs, f"{document.name}: {target}"


def test_the_site_is_built_without_a_complaint(tmp_path):
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs-material or mkdocstrings is not installed: pip install -e '.[docs]'")
    command = ["bash", str(ROOT / "exp_sh" / "docs.sh"), str(tmp_path / "site")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for name in ("index", "own-pictures/index", "api/index"):
        page = (tmp_path / "site" / f"{name}.html").read_text()
        assert "<h1" in page
        assert not re.findall(r'(?:src|href)="https?://(?!squidfunk|www\.mkdocs)[^"]*\.(?:js|css|woff2?)"', page), name
    assert (tmp_path / "site" / "fig" / "merged_digits.png").exists()
