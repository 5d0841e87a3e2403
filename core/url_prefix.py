"""The path under which everything is served, URL_PREFIX: `/triggers` for https://example.com/triggers/api/events.

Only the setting counts.  What a request says about it (a `SCRIPT_NAME` header, which some servers believe) is ignored:
the front door passes no header with an underscore on, and FORCE_SCRIPT_NAME overrides the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def path_below(path: str) -> str:
    """Return the part of a request's path that follows URL_PREFIX; a path without the prefix comes back as it is.

    So a proxy may pass the full path or strip the prefix, and a health check may call the process directly, without it.
    """
    prefix: str = settings.URL_PREFIX
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        return path[len(prefix) :] or "/"
    return path


def full_path(path: str) -> str:
    """Return the path that a client has to request to reach `path`."""
    return f"{settings.URL_PREFIX}{path}"


def serve_below_prefix(application: Application) -> Application:
    """Return a WSGI application that takes URL_PREFIX off the path before `application` sees it."""

    def prefixed(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["SCRIPT_NAME"] = settings.URL_PREFIX
        environ["PATH_INFO"] = path_below(environ.get("PATH_INFO", ""))
        return application(environ, start_response)

    return prefixed
