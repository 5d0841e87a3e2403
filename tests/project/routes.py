"""The API's routes with what each needs, as the URL configuration has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver

from orgs.scopes import Scope


def _routes(resolver: URLResolver, prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for entry in resolver.url_patterns:
        path = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from _routes(entry, path)
        else:
            yield path, entry


def api_routes() -> dict[str, dict[str, Scope | None] | None]:
    """Return the scope for each method of each route under /api/, by path; None for a plain view, which needs no key.

    A path is written as the documentation does: `/api/events/{event_id}`.
    """
    found: dict[str, dict[str, Scope | None] | None] = {}
    for path, entry in _routes(get_resolver()):
        if path.startswith("api/"):
            callback: Any = entry.callback
            view = getattr(callback, "cls", None)
            actions = getattr(callback, "actions", None)
            scopes = view.scopes_for(actions) if actions else getattr(view, "scopes", None)
            found["/" + re.sub(r"<(?:uuid|int|slug):(\w+)>", r"{\1}", path)] = scopes
    return found
