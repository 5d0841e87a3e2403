"""What the server says is deprecated (`Deprecation`, RFC 9745; `Sunset`, RFC 8594), as warnings of Python."""

from __future__ import annotations

import datetime
import email.utils
import inspect
import re
import warnings
from pathlib import Path

import httpx

_PACKAGE = str(Path(__file__).parent)
# An id in a path: a UUID, or the number of an attempt.
_ID = re.compile(r"(?<=/)(?:[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9]+)(?=/|$)")
# What was warned of: the server, the method, and the path without ids.
_seen: set[tuple[str, str, str]] = set()


class ApiDeprecationWarning(FutureWarning):
    """A request uses a part of the API that will be taken away.  Each endpoint is warned of once in a process.

    endpoint: such as `GET /api/events/{id}`.  since, sunset: since when it is deprecated, and until when it works, if
    the server said so.  documentation: a URL that says what to use instead, or an empty string.
    """

    def __init__(
        self, endpoint: str, since: datetime.date | None, sunset: datetime.date | None, documentation: str
    ) -> None:
        # A parameter or a member of the body can be what is deprecated, not only the endpoint.
        text = f"A request to {endpoint} uses what is deprecated"
        text += f" since {since}" if since else ""
        text += f" and works until {sunset}" if sunset else ""
        super().__init__(f"{text}: see {documentation}" if documentation else text)
        self.endpoint = endpoint
        self.since = since
        self.sunset = sunset
        self.documentation = documentation


def warn_if_deprecated(response: httpx.Response) -> None:
    """Warn of what a response says is deprecated, at the line of the program that uses it."""
    value = response.headers.get("deprecation")
    if value is None:
        return
    request = response.request
    path = _ID.sub("{id}", request.url.path)
    seen = (f"{request.url.host}:{request.url.port}", request.method, path)
    if seen in _seen:
        return
    _seen.add(seen)
    link = response.links.get("deprecation", {}).get("url", "")
    warning = ApiDeprecationWarning(
        f"{request.method} {path}", _since(value), _sunset(response.headers.get("sunset", "")),
        str(request.url.join(link)) if link else "",
    )  # fmt: skip
    warnings.warn(warning, stacklevel=_level_of_caller())


def _since(value: str) -> datetime.date | None:
    try:
        return datetime.datetime.fromtimestamp(int(value.strip().removeprefix("@")), datetime.UTC).date()
    except (ValueError, OverflowError, OSError):  # `true`, as before RFC 9745
        return None


def _sunset(value: str) -> datetime.date | None:
    try:
        return email.utils.parsedate_to_datetime(value).date()
    except ValueError:
        return None


def _level_of_caller() -> int:
    """Return how far up the stack the first function outside of this package is, as seen by the caller."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
