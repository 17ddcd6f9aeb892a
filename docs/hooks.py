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
# Pages that stand at the root of the repository, where its visitors look for them.
OF_ROOT = ("PRETRAINED.md", "CKPT.md", "SECURITY.md", "CONTRIBUTING.md")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """The pages that are there, in their order; others behind them."""
    there = {path.stem for path in (ROOT / "docs").glob("*.md")}
    pages = [f"{name}.md" for name in [*(n for n in ORDER if n in there), *sorted(there - set(ORDER))]]
    config.nav = [{"Start here": page} if page == "index.md" else page for page in [*pages, *OF_ROOT]]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Figures of fig/ and the pages of the root become part of the site."""
    for path in [*(ROOT / "fig").glob("*.png"), *map(ROOT.joinpath, OF_ROOT)]:
        name = path.name if path.suffix == ".md" else f"fig/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links lead to pages and figures of the site; other files of the repository are named, for they are not in it."""
    folder = ROOT if page.file.src_path in OF_ROOT else ROOT / "docs"

    def replaced(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        path = (folder / target).resolve()
        if not path.exists():
            if target.startswith("../"):
                raise PluginError(f"{page.file.src_path}: there is no {target}")
            return match[0]  # perhaps no link: mkdocs judges
        name = path.relative_to(ROOT).as_posix()
        if name in OF_ROOT or name.startswith("docs/"):
            return f"{image}[{text}]({name.removeprefix('docs/')}{anchor or ''})"
        if image:
            return f"![{text}](fig/{path.name})"
        return f"{text} (`{name}`)" if text.strip("`") != name else f"`{name}`"

    return LINK.sub(replaced, markdown)
