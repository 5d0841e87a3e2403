"""Why nothing is at a path below /api/, in a sentence that says what would be right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from django.urls import URLPattern, URLResolver, get_resolver

from core.problems import Problem, not_found
from core.suggestions import closest
from core.url_prefix import full_path

_VERSION = re.compile(r"/api/(v[0-9]+)(/.*)?")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_EXAMPLE = "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"
_CONVERTER = re.compile(r"<(?:\w+:)?(\w+)>")
# The reasons below are for people, who read no more of a path than this.
_MOST_CHARACTERS = 200


def _routes(resolver: URLResolver, prefix: str = "/") -> Iterator[str]:
    for entry in resolver.url_patterns:
        path = prefix + str(entry.pattern)
        if isinstance(entry, URLPattern):
            yield path
        elif isinstance(entry, URLResolver):
            yield from _routes(entry, path)


@lru_cache(maxsize=1)
def _api_routes() -> dict[str, re.Pattern[str]]:
    """Return each route below /api/, written as in the documentation, with what takes anything for its parameters."""
    routes = sorted({route for route in _routes(get_resolver()) if route.startswith("/api/")})
    patterns = {}
    for route in routes:
        parts = _CONVERTER.split(route)
        text = "".join(f"(?P<{part}>[^/]+)" if at % 2 else re.escape(part) for at, part in enumerate(parts))
        patterns[_CONVERTER.sub(r"{\1}", route)] = re.compile(text)
    return patterns


def _find(path: str) -> tuple[str, dict[str, str]] | None:
    """Return the route that the path would be of if its parameters were right, and those."""
    for route, pattern in _api_routes().items():
        if match := pattern.fullmatch(path):
            return route, match.groupdict()
    return None


def below_api(path: str) -> str | None:
    """Return the path below /api/ that was meant by one without /api, or with API; None if there is none."""
    path = path[:_MOST_CHARACTERS].rstrip("/")
    instead = path.lower() if path.lower().startswith("/api/") else f"/api{path}"
    return instead if path and _find(instead) else None


def nothing_at(path: str, instead: str | None = None) -> Problem:
    """Return the 404 for a path below /api/ that nothing has.

    path: without URL_PREFIX, as is `instead`, which is what may have been meant.
    """
    path = path[:_MOST_CHARACTERS].rstrip("/") or "/"
    shown = full_path(path)
    if version := _VERSION.fullmatch(path):
        rest = f"/api{version[2] or ''}"
        right = full_path(rest if _find(rest) else "/api/events")
        return Problem(
            "path_not_found", f"There is no {full_path('/api')}/{version[1]}: paths have no version. Use {right}."
        )
    found = _find(path)
    if found is not None and instead is None:
        for name, value in found[1].items():
            if name.endswith("_id") and not _ID.fullmatch(value):
                return not_found(f"`{value}` is not a valid {name}: an id is a UUID in lowercase, such as {_EXAMPLE}.")
            if name == "number" and not value.isdigit():
                return not_found(f"`{value}` is not the number of an attempt: they are 1, 2, and so on.")
    parent = path.rpartition("/")[0]
    if instead is None and (above := _find(parent)) and "{" in above[0]:
        below = [route.removeprefix(above[0]) for route in _api_routes() if route.startswith(f"{above[0]}/")]
        if below:
            near = closest(path.removeprefix(parent), below)
            listed = f"Did you mean {full_path(parent)}{near}?" if near else f"There are: {', '.join(below)}."
            return Problem("path_not_found", f"There is no {shown}. {listed}")
    meant = instead or closest(path, [route for route in _api_routes() if "{" not in route])
    suggestion = f"Did you mean {full_path(meant)}?" if meant else f"{full_path('/api/docs')} lists what there is."
    return Problem("path_not_found", f"There is no {shown}. {suggestion}")
