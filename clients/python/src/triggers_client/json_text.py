"""JSON as the API returns it, which may hold what msgspec refuses: numbers like `1e400`, and half of a surrogate pair.

Both are valid JSON, so an event may have them, and one such event must not make a whole page unreadable.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

# A pair of surrogates, a surrogate alone (the group), or any other escape.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def read(text: bytes, kind: Any) -> Any:
    """Return the value of a JSON text.  Raises msgspec.MsgspecError if it isn't JSON, or isn't of that type.

    A surrogate alone, which is no character, becomes U+FFFD, and a number that no float can hold becomes infinite.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError:
        return msgspec.json.Decoder(kind, float_hook=float).decode(characters(text))


def characters(text: bytes) -> bytes:
    """Return a JSON text with U+FFFD for each surrogate that is alone."""
    return _ESCAPE.sub(lambda found: rb"\ufffd" if found[1] else found[0], text)
