"""What mkdocs does beside building docs/: the pages of the root that belong to the site, and links to the root.

Pages in docs/ link to ../SECURITY.md and the like, as they have to on GitHub.  The site has no folder above docs/, so
these pages get a place beside the others there, and the links follow.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# The license and the source code aren't pages: the site shows their names without a link.
PAGES = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the root's pages."""
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Lead links that cross the border of docs/ to where the site has their targets."""
    source = Path(page.file.src_uri)
    folder = ROOT if source.name in PAGES else (ROOT / "docs" / source).parent
    here = (ROOT / "docs" / source).parent

    def follow(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:") or not path:
            return match[0]
        meant = (folder / path).resolve()
        if meant.is_relative_to(ROOT / "docs"):
            placed = meant
        elif meant.parent == ROOT and meant.name in PAGES:
            placed = ROOT / "docs" / meant.name
        elif meant == ROOT / "README.md":
            placed, anchor = ROOT / "docs" / "index.md", ""
        elif meant.exists():
            return text
        else:
            return match[0]
        return f"[{text}]({os.path.relpath(placed, here)}{'#' + anchor if anchor else ''})"

    return _LINK.sub(follow, markdown)
