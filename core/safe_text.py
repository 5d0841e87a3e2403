"""Hostile text made readable: JSON indented without being parsed, invisible characters shown.

Nothing here escapes HTML: templates do that.
"""

from __future__ import annotations

import json
import re
import unicodedata

# A string, a bracket or separator, or a run of anything else (numbers, true, false, null).
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')
_INDENT = "  "
_MAX_DEPTH = 200
# Controls, formatting characters (direction overrides, zero-width ones), surrogates, private use, separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def visible(text: str) -> str:
    r"""Return `text` with each invisible or direction-changing character as `\uXXXX`; line ends and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spell(c) if unicodedata.category(c) in _INVISIBLE and c not in "\n\t" else c for c in text)


def _spell(character: str) -> str:
    return "".join(f"\\u{unit:04x}" for unit in memoryview(character.encode("utf-16-le", "surrogatepass")).cast("H"))


def pretty_json(text: str) -> str:
    """Return JSON text indented; every number, string, name and their order stay as they were written.

    Text that isn't JSON comes back as it is.
    """
    try:
        # Only parsed to see whether it is JSON: a parsed number might not be the number that was sent.
        json.loads(text, parse_int=len, parse_float=len)
    except (ValueError, RecursionError):
        return text
    out: list[str] = []
    depth = 0
    tokens = _TOKEN.findall(text)
    for position, mark in enumerate(tokens):
        before = tokens[position - 1] if position else ""
        if mark in ("}", "]"):
            depth -= 1
            if before not in ("{", "["):
                out.append(_line(depth))
        elif before in ("{", "[", ","):
            out.append(_line(depth))
        out.append(": " if mark == ":" else mark)
        if mark in ("{", "["):
            depth += 1
    return "".join(out)


def _line(depth: int) -> str:
    return "\n" + _INDENT * min(depth, _MAX_DEPTH)


def excerpt(text: str, most: int) -> tuple[str, int]:
    """Return the first `most` characters of `text` and how many were left out."""
    return text[:most], max(0, len(text) - most)
