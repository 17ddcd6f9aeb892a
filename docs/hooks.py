"""What mkdocs does not know: the order of the pages, and what they show or name of the repository outside of docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    "index method options own-pictures video machines feeding scaling measure kernels flops evidence rules extend "
    "differences faq reference api"
).split()
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """The pages that are there, in their order; others behind them."""
    there = {path.stem for path in (ROOT / "docs").glob("*.md")}
    pages = [f"{name}.md" for name in [*(n for n in ORDER if n in there), *sorted(there - set(ORDER))]]
    config.nav = [{"Start here": page} if page == "index.md" else page for page in pages]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Figures of fig/ become part of the site."""
    for path in (ROOT / "fig").glob("*.png"):
        files.append(File.generated(config, f"fig/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Figures are shown from the site; other files of the repository are named, for they are not in it."""

    def replaced(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        if not (ROOT / target).exists():
            raise PluginError(f"{page.file.src_path}: there is no {target}")
        if image:
            return f"![{text}](fig/{Path(target).name})"
        return f"{text} (`{target}`)" if text.strip("`") != target else f"`{target}`"

    return OUTSIDE.sub(replaced, markdown)
