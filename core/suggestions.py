"""Suggestions for misspelled names, for messages that say what would be right."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches

# The most names that a message lists, and that a word is compared with.
_MOST_NAMED = 40
_MOST_CHARACTERS = 80


def _plain(word: str) -> str:
    """Return the letters and digits of a word: `eventTypes` and `event-types` are spellings of `event_types`."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def closest(word: str, known: Collection[str]) -> str | None:
    """Return the one of `known` that `word` is most like, or None if it is like none."""
    spellings: dict[str, str] = {}
    for one in known:
        spellings.setdefault(_plain(one), one)
    found = get_close_matches(_plain(word[:_MOST_CHARACTERS]), spellings, n=1, cutoff=0.75)
    return spellings[found[0]] if found else None


def unknown_parameter(name: str, known: Collection[str], hints: Mapping[str, str]) -> str:
    """Return what is wrong with a query parameter that an endpoint doesn't have.  hints: as of `unknown_field`."""
    meant = hint if (hint := hints.get(name)) in known else closest(name, known)
    suggestion = f"; did you mean {meant}?" if meant else ""
    return f"is not a parameter of this endpoint{suggestion} (it has: {', '.join(known) or 'none'})"


def unknown_field(name: str, known: Collection[str], hints: Mapping[str, str] | None = None) -> str:
    """Return what is wrong with a member that isn't known.

    hints: what to do instead, for names that people try; the name of a field, or a sentence.
    """
    hint = (hints or {}).get(name)
    if hint is not None and hint not in known:
        return f"is not a known field: {hint}"
    meant = hint or closest(name, known)
    if meant is not None:
        return f"is not a known field; did you mean {meant}?"
    if not known or len(known) > _MOST_NAMED:
        return "is not a known field"
    return f"is not a known field (there are: {', '.join(known)})"
