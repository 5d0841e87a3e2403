"""Every link of the documentation leads somewhere: to a file that there is, and to a heading that it has.

`make docs` finds the same, and more, with mkdocs.  This needs nothing but the files.
"""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "integrations/*/*.md")
    for page in ROOT.glob(pattern)
    if "node_modules" not in page.parts
)
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.S | re.M)
_LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.M)


def prose(text: str) -> str:
    """Return a page without its code, which may hold anything."""
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """Return what a link to a page may have behind its `#`, as GitHub makes it from the headings."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose(text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number, unique = 0, slug
        while unique in found:
            number += 1
            unique = f"{slug}-{number}"
        found.add(unique)
    return found


@functools.cache
def _anchors_of(page: Path) -> set[str]:
    return anchors(page.read_text())


def broken(page: Path, text: str) -> list[str]:
    """Return the links of a page that lead nowhere."""
    wrong = []
    for target in _LINK.findall(re.sub(r"`[^`\n]+`", "", prose(text))):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        meant = (page.parent / path).resolve() if path else page
        if (
            not meant.is_relative_to(ROOT)
            or not meant.exists()
            or (anchor and anchor not in (anchors(text) if meant == page else _anchors_of(meant)))
        ):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_what_leads_nowhere_is_found() -> None:
    page = DOCS / "index.md"
    text = (
        "# One\n\n## What failed, and why?\n\n"
        "[a](operations.md#settings) [b](#what-failed-and-why) [c](https://a.example)\n"
        "[d](nowhere.md) [e](operations.md#nowhere) [f](#nowhere) `[g](code.md)`\n\n"
        "```sh\n# Comment\n[h](code.md)\n```\n"
        "[i](#comment) [j](../../outside.md)\n"
    )
    assert broken(page, text) == ["nowhere.md", "operations.md#nowhere", "#nowhere", "#comment", "../../outside.md"]
    assert anchors("# A `b_c` d/e\n## Twice\n## Twice\n") == {"a-b_c-de", "twice", "twice-1"}


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without making the Python objects that it names."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def _pages_of(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in _pages_of(item)]


def test_the_site_has_every_page_once() -> None:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    named = _pages_of(site["nav"])
    of_root = {"SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert sorted(named) == sorted({str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | of_root)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_and_tables_are_recognized_as_such(page: Path) -> None:
    """GitHub sees a list below a line of text; the site needs an empty line between the two."""
    lines = prose(page.read_text()).splitlines()
    wrong = [
        line
        for before, line in itertools.pairwise(lines)
        if (re.match(r"[-*] |1\. ", line) and before.strip() and not re.match(r" *([-*] |\d+\. )|  ", before))
        or (line.startswith("|") and before.strip() and not before.startswith("|"))
    ]
    assert not wrong
