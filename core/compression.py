"""Compressed request bodies: gzip (RFC 1952), within the limit for the body itself."""

from __future__ import annotations

import zlib

from core.problems import Problem

GZIP = frozenset({"gzip", "x-gzip"})  # RFC 9110 §8.4.1.3: the same
_WITH_GZIP_HEADER = 16 + zlib.MAX_WBITS
# The most gzip members of a body.  Clients send one.  Each further one costs a copy of the rest, so many small ones
# would take seconds.
MOST_MEMBERS = 8


def require_encoding(content_encoding: str | None) -> bool:
    """Return whether a body with this Content-Encoding is compressed.  Raises Problem 415 for one that isn't gzip."""
    encoding = (content_encoding or "identity").strip().lower()
    if encoding != "identity" and encoding not in GZIP:
        raise Problem("unsupported_content_encoding", "Send the body with Content-Encoding `gzip`, or without.")
    return encoding in GZIP


def decompress(body: bytes, limit: int) -> bytes:
    """Return what gzip made `body` from.

    Raises Problem: 413 if that is longer than `limit` bytes, of which no more are decompressed; 400 if it isn't gzip,
    ends early, or has more than MOST_MEMBERS members.
    """
    parts: list[bytes] = []
    left = limit
    for _ in range(MOST_MEMBERS):  # gzip allows several, one after the other
        member = zlib.decompressobj(_WITH_GZIP_HEADER)
        try:
            part = member.decompress(body, left + 1)
        except zlib.error:
            raise Problem("bad_request", "The body is not gzip, as its Content-Encoding says.") from None
        left -= len(part)
        if left < 0:
            raise Problem(
                "too_large", f"The body is over the limit of {limit} bytes, decompressed.", extra={"limit_bytes": limit}
            )
        if not member.eof:
            raise Problem("incomplete_body", "The compressed body ends early.")
        parts.append(part)
        if not member.unused_data:
            return b"".join(parts)
        body = member.unused_data
    raise Problem("bad_request", f"The body has more than {MOST_MEMBERS} gzip members.")
