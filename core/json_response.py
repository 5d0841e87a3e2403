"""JSON out: what the API sends is rendered by orjson."""

from __future__ import annotations

import datetime
from typing import Any

import orjson
from rest_framework.renderers import BaseRenderer


class JSONRenderer(BaseRenderer):
    """Render with orjson; times as RFC 3339 in UTC with a `Z`."""

    media_type = "application/json"
    format = "json"
    charset = None

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> bytes:
        return b"" if data is None else dumps(data)


def dumps(data: Any) -> bytes:
    """Return `data` as JSON; times as RFC 3339 in UTC with a `Z`."""
    return orjson.dumps(data, default=_default, option=orjson.OPT_UTC_Z)


def _default(value: Any) -> Any:
    if isinstance(value, Fragment):
        return orjson.Fragment(value.raw)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value)


class Fragment:
    """JSON text that goes into a response as it is, so that a payload isn't parsed and written again."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes | str) -> None:
        self.raw = raw
