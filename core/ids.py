"""Identifiers: UUID version 7 (RFC 9562 §5.7), in time order, so that indexes stay warm."""

from __future__ import annotations

import uuid

import uuid_utils


def new_id() -> uuid.UUID:
    """Return a fresh UUIDv7."""
    return uuid.UUID(int=uuid_utils.uuid7().int)


def new_ids(count: int) -> list[str]:
    """Return `count` fresh UUIDv7 as text, for statements that take arrays."""
    uuid7 = uuid_utils.uuid7
    return [str(uuid7()) for _ in range(count)]


def parse_id(text: str) -> uuid.UUID | None:
    """Return the UUID that `text` spells in its canonical form, or None."""
    if len(text) != 36:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
