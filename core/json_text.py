"""JSON texts that are valid by RFC 8259 and that orjson refuses: `1e400`, `"\\ud800"`, integers of 400 digits.

Numbers that no float can hold and lone surrogates are valid JSON, but many parsers can't represent them.  These
functions check whether a text is JSON, and find its parts, so that it can be kept as it was written.  They are several
times slower than orjson, so call them only for what orjson has refused.  Of members with the same name, the last one
counts, as with orjson.

All raise ValueError, which says what is wrong, or RecursionError for some hundred levels of nesting.
"""

from __future__ import annotations

import json
import re
from typing import Any

_NOT_WHITE_SPACE = re.compile(r"[^ \t\n\r]|$")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


# Numbers become 0: neither their size nor the time that a conversion takes matters, only their text does.
_decoder = json.JSONDecoder(
    parse_int=lambda _digits: 0, parse_float=lambda _digits: 0.0, parse_constant=_refuse_constant
)


def parse(body: bytes) -> Any:
    """Return the value of a JSON text, each number in it as 0; strings may hold U+0000 and lone surrogates."""
    return _decoder.decode(_text(body))


def members(body: bytes) -> dict[str, str]:
    """Return the text of each member of a JSON object, exactly as it is written.  body: what `parse` takes."""
    text = _text(body)
    found = {}
    at = _expect(text, _skip(text, 0), "{")
    while text[at] != "}":
        name, at = _decoder.raw_decode(text, at)
        start = _expect(text, _skip(text, at), ":")
        _, at = _decoder.raw_decode(text, start)
        found[name] = text[start:at]
        at = _next(text, at)
    return found


def items(body: bytes) -> list[bytes]:
    """Return the text of each item of a JSON array, exactly as it is written.  body: what `parse` takes."""
    text = _text(body)
    found = []
    at = _expect(text, _skip(text, 0), "[")
    while text[at] != "]":
        start = at
        _, at = _decoder.raw_decode(text, start)
        found.append(text[start:at].encode())
        at = _next(text, at)
    return found


def _text(body: bytes) -> str:
    text = body.decode()  # UTF-8, strictly
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark")
    return text


def _skip(text: str, at: int) -> int:
    """Return where the white space from `at` on ends."""
    match = _NOT_WHITE_SPACE.search(text, at)
    return match.start() if match else len(text)


def _expect(text: str, at: int, mark: str) -> int:
    """Return the place after `mark`, which stands at `at`, and after white space."""
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"Expecting '{mark}'", text, at)
    return _skip(text, at + 1)


def _next(text: str, at: int) -> int:
    """Return where the next member or item begins, or the bracket that closes them stands."""
    at = _skip(text, at)
    return _expect(text, at, ",") if text[at] == "," else at
