"""Identifiers: for rows UUID version 7 (RFC 9562 §5.7), in time order, so that indexes stay warm."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from hashlib import blake2b

import uuid_utils

_VARIANT = 1 << 63
_HASH = (1 << 62) - 1


# The time in an id comes from the clock of the machine that made it, which may be wrong by this much.
_CLOCK_SKEW = datetime.timedelta(minutes=10)


def new_id() -> uuid.UUID:
    """Return a fresh UUIDv7."""
    return uuid.UUID(int=uuid_utils.uuid7().int)


def new_ids(count: int) -> list[str]:
    """Return `count` fresh UUIDv7 as text, for statements that take arrays."""
    uuid7 = uuid_utils.uuid7
    return [str(uuid7()) for _ in range(count)]


def new_request_id() -> str:
    """Return a fresh id for a request that brings none: a random UUID as text."""
    return str(uuid_utils.uuid4())


def derive_id(origin: uuid.UUID, part: uuid.UUID) -> uuid.UUID:
    """Return the id of what belongs to `origin` for `part`: always the same, and with the time of `origin`'s.

    The first 64 bits are those of `origin`: its time and what follows it.  Of the others two say which kind of UUID it
    is, and 62 are a hash: among the thousand ids of one origin, two are the same once in 10 trillion times.
    """
    return uuid.UUID(derive_ids(origin, (part,))[0])


def derive_ids(origin: uuid.UUID, parts: Iterable[uuid.UUID]) -> list[str]:
    """Return the ids of what belongs to `origin` for each of `parts`, as text without hyphens, for arrays."""
    first_half, start = f"{origin.int >> 64:016x}", origin.bytes
    return [
        f"{first_half}{_VARIANT | _HASH & int.from_bytes(blake2b(start + part.bytes, digest_size=8).digest()):016x}"
        for part in parts
    ]


def first_id_since(moment: datetime.datetime) -> uuid.UUID:
    """Return an id that sorts before every UUIDv7 (RFC 9562 §5.7) made since `moment` on any of our machines."""
    milliseconds = int((moment - _CLOCK_SKEW).timestamp() * 1000)
    return uuid.UUID(int=max(0, milliseconds) << 80)


def parse_id(text: str) -> uuid.UUID | None:
    """Return the UUID that `text` spells in its canonical form, or None."""
    if len(text) != 36:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
