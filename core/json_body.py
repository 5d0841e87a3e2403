"""JSON in: request bodies, bounded and strict."""

from __future__ import annotations

from typing import Any

import orjson
from django.conf import settings
from rest_framework.request import Request

from core import json_text
from core.compression import decompress, require_encoding
from core.problems import Problem, invalid

# Largest body that isn't an event; events have their own bounds.
MAX_OBJECT_BYTES = 65536


def read_body(request: Any, limit: int) -> bytes:
    """Return the body of a Django request; reading it twice returns the same bytes.

    limit: the most bytes that it may have, as it comes and decompressed.  Raises Problem: 413 for a longer body, 415
    for one that is compressed with anything but gzip, 400 for one that ends early or isn't gzip or whose
    Content-Length is not a number.
    """
    if (kept := body_that_was_read(request)) is not None:
        return kept
    meta = request.META
    is_compressed = require_encoding(meta.get("HTTP_CONTENT_ENCODING"))
    if "chunked" in meta.get("HTTP_TRANSFER_ENCODING", "").lower():
        body: bytes = meta["wsgi.input"].read(limit + 1)
    else:
        try:
            length = int(meta.get("CONTENT_LENGTH") or 0)
        except ValueError:
            raise Problem("bad_request", "Content-Length is not a number.") from None
        if length > limit:
            raise too_large(limit)
        body = request.read(length) if length > 0 else b""
        if len(body) < length:
            raise Problem("incomplete_body", "The body ended before its Content-Length.")
    if len(body) > limit:
        raise too_large(limit)
    request.body_that_was_read = decompress(body, limit) if is_compressed else body
    return bytes(request.body_that_was_read)


def body_that_was_read(request: Any) -> bytes | None:
    """Return what `read_body` has read of a Django request; None if it wasn't called."""
    return getattr(request, "body_that_was_read", None)


def too_large(limit: int) -> Problem:
    """Return the 413 for a body of more than `limit` bytes."""
    return Problem("too_large", f"The body is over the limit of {limit} bytes.", extra={"limit_bytes": limit})


def depth_error(body: bytes, value: Any) -> str | None:
    """Return what is wrong with JSON that is nested deeper than MAX_JSON_DEPTH, or None."""
    # The value is rarely walked: counting brackets is enough for almost every body.
    depth: int = settings.MAX_JSON_DEPTH
    if body.count(b"[") + body.count(b"{") > depth and not _shallower_than(value, depth):
        return f"nested more than {depth} levels deep"
    return None


def _check(body: bytes, value: Any) -> None:
    """Reject JSON that parses but can't be stored: nested too deep, or with U+0000 in a string.  Raises Problem 400."""
    if reason := depth_error(body, value):
        raise invalid([("", reason)])
    if b"\\u0000" in body:
        pointer = _find_nul(value, "")
        if pointer is not None:
            raise invalid([(pointer, "contains the character U+0000, which can't be stored")])


def _shallower_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following.extend(inner for inner in item.values() if isinstance(inner, dict | list))
            elif isinstance(item, list):
                following.extend(inner for inner in item if isinstance(inner, dict | list))
        if not following:
            return True
        level = following
    return False


def _find_nul(value: Any, pointer: str) -> str | None:
    if isinstance(value, str):
        return pointer if "\x00" in value else None
    if isinstance(value, dict):
        for name, inner in value.items():
            if "\x00" in name:
                return pointer
            found = _find_nul(inner, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}")
            if found is not None:
                return found
    if isinstance(value, list):
        for position, inner in enumerate(value):
            found = _find_nul(inner, f"{pointer}/{position}")
            if found is not None:
                return found
    return None


def encoding_error(body: bytes) -> str | None:
    """Return what is wrong with a body that isn't UTF-8, as JSON always is (RFC 8259 §8.1), or None."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        byte = f"0x{body[error.start]:02X}"
        return f"is not UTF-8: the byte {byte} at position {error.start} doesn't belong there"
    return None


def _is_json(body: bytes) -> bool:
    try:
        json_text.parse(body)
    except (ValueError, RecursionError):
        return False
    return True


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON body (RFC 8259: UTF-8, no NaN).  Raises Problem 400."""
    if not body:
        raise Problem("invalid_json", "The body is empty; send a JSON object.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if reason := encoding_error(body):
            raise Problem("invalid_json", f"The body {reason}.") from None
        if _is_json(body):  # a number or a text that orjson can't represent
            raise invalid([("", f"holds what can't be represented: {error}")]) from None
        raise Problem("invalid_json", f"The body is not valid JSON: {error}.") from None
    _check(body, value)
    return value


def require_media_type(content_type: str | None, *accepted: str) -> str:
    """Return the media type of a Content-Type, without parameters.  Raises Problem 415 when `accepted` lacks it."""
    media_type = (content_type or "").split(";")[0].strip().lower()
    if media_type not in accepted:
        raise Problem(
            "unsupported_media_type",
            "The content type must be " + " or ".join(accepted) + ".",
            errors=[("#Content-Type", f"is {media_type or 'missing'}"[:200])],
        )
    return media_type


def read_object(request: Request, limit: int = MAX_OBJECT_BYTES) -> dict[str, Any]:
    """Return the JSON object in a body of at most `limit` bytes; an empty body is an empty object.

    Raises Problem 400, 413 or 415.
    """
    body = read_body(request._request, limit)
    if not body:
        return {}
    require_media_type(request.content_type, "application/json")
    value = parse_json(body)
    if not isinstance(value, dict):
        raise invalid([("", "must be a JSON object")])
    return value
