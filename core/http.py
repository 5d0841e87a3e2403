"""JSON in and out of the API: bounded, strict bodies; orjson answers."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from django.conf import settings
from django.http import HttpResponse
from rest_framework.metadata import BaseMetadata
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from core.problems import Problem, invalid

# Of what isn't an event; events have their own bounds.
MAX_OBJECT_BYTES = 65536


class JSONRenderer(BaseRenderer):
    """Render with orjson; times as RFC 3339 in UTC with a `Z`."""

    media_type = "application/json"
    format = "json"
    charset = None

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> bytes:
        if data is None:
            return b""
        return orjson.dumps(data, default=_default, option=orjson.OPT_UTC_Z)


def json_response(body: Any, status: int, headers: Mapping[str, str]) -> HttpResponse:
    """Return an answer that is rendered already: the cheap way past DRF's Response, which is made for templates."""
    return HttpResponse(JSONRenderer().render(body), status=status, content_type="application/json", headers=headers)


def _default(value: Any) -> Any:
    if isinstance(value, Fragment):
        return orjson.Fragment(value.raw)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value)


class Fragment:
    """JSON text that goes into an answer as it is, so that a payload isn't parsed and written again."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes | str) -> None:
        self.raw = raw


class JSONOnlyNegotiation(BaseContentNegotiation):
    """The API speaks JSON whatever `Accept` says: an answer that can be read beats a 406."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        content_type = (request.content_type or "").split(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == content_type), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, renderer.media_type or "application/json"


class NoMetadata(BaseMetadata):
    """OPTIONS tells the methods in `Allow` and nothing else; the OpenAPI schema describes them."""

    def determine_metadata(self, request: Request, view: Any) -> None:
        return None


def read_body(request: Any, limit: int) -> bytes:
    """Return the request's body, also when it was read before.

    limit: the most bytes that are read.  Raises Problem: 413 for a longer body, 415 for a
    compressed one, 400 for one that ends early or a wrong Content-Length.
    """
    if hasattr(request, "_body"):  # where Django keeps it, too
        return bytes(request._body)
    meta = request.META
    if meta.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise Problem(415, "unsupported_content_encoding", "Send the body without Content-Encoding.")
    if "chunked" in meta.get("HTTP_TRANSFER_ENCODING", "").lower():
        body: bytes = meta["wsgi.input"].read(limit + 1)
    else:
        try:
            length = int(meta.get("CONTENT_LENGTH") or 0)
        except ValueError:
            raise Problem(400, "bad_request", "Content-Length is not a number.") from None
        if length > limit:
            raise _too_large(limit)
        body = request.read(length) if length > 0 else b""
        if len(body) < length:
            raise Problem(400, "incomplete_body", "The body ended before its Content-Length.")
    if len(body) > limit:
        raise _too_large(limit)
    request._body = body
    return body


def _too_large(limit: int) -> Problem:
    return Problem(413, "too_large", f"The body is over the limit of {limit} bytes.", extra={"limit_bytes": limit})


def check_json(body: bytes, value: Any) -> None:
    """Refuse what parses but must not be stored: nesting over MAX_JSON_DEPTH, and U+0000 in a string.

    Raises Problem 400.
    """
    # Both walks are rare: counting brackets and looking for the escape settles almost every body.
    depth: int = settings.MAX_JSON_DEPTH
    if body.count(b"[") + body.count(b"{") > depth and not _shallower_than(value, depth):
        raise invalid([("", f"nested more than {depth} levels deep")])
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


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON body (RFC 8259: UTF-8, no NaN).  Raises Problem 400."""
    if not body:
        raise Problem(400, "invalid_json", "The body is empty; send a JSON object.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "invalid_json", f"The body is not valid JSON: {error}.") from None
    check_json(body, value)
    return value


class JSONBody(BaseParser):
    """Says that a view takes `application/json`.

    Views read the body themselves: each has its own bound, and DRF would take a chunked body, which
    has no Content-Length, for an empty one.
    """

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        raise NotImplementedError("the view reads the body")


class NDJSONBody(JSONBody):
    """Says that a view takes `application/x-ndjson`: one JSON object a line."""

    media_type = "application/x-ndjson"


def require_media_type(request: Request, *accepted: str) -> str:
    """Return the body's media type, without parameters.  Raises Problem 415 when it isn't one of `accepted`."""
    media_type = (request.content_type or "").split(";")[0].strip().lower()
    if media_type not in accepted:
        raise Problem(
            415,
            "unsupported_media_type",
            "The content type must be " + " or ".join(accepted) + ".",
            errors=[("#Content-Type", f"is {media_type or 'missing'}"[:200])],
        )
    return media_type


def read_object(request: Request) -> dict[str, Any]:
    """Return the object in a body of at most MAX_OBJECT_BYTES; an empty body is an empty object.

    Raises Problem 400, 413 or 415.
    """
    body = read_body(request._request, MAX_OBJECT_BYTES)
    if not body:
        return {}
    require_media_type(request, "application/json")
    value = parse_json(body)
    if not isinstance(value, dict):
        raise invalid([("", "must be a JSON object")])
    return value
