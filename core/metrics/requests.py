"""The metrics of HTTP requests: how long each took, and which problems were returned."""

from __future__ import annotations

import re
from functools import lru_cache

from django.http import HttpRequest

from core.metrics.kinds import Counter, Histogram

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
_STATUS_CLASSES = [f"{hundreds}xx" for hundreds in range(10)]

REQUESTS = Histogram(
    "triggers_http_request_duration_seconds",
    "How long requests took, by route, method, and class of status. Waiting at an inbox is part of it.",
    ["route", "method", "status"],
    bounds=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
PROBLEMS = Counter(
    "triggers_http_problems_total",
    "Requests that were refused or failed, by route and problem code.",
    ["route", "code"],
)


def count_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count a request that was responded to.  route: as `route_of` names it."""
    REQUESTS.observe(seconds, route, method if method in METHODS else OTHER, _STATUS_CLASSES[status // 100])


def route_of(request: HttpRequest) -> str:
    """Return the template of the route that Django chose, such as `/api/events/{event_id}`.

    Routes outside of the API are `admin` or `other`, and so is a path without a route.
    """
    match = request.resolver_match
    if match is None:
        return OTHER
    return _template(match.route, "admin" in match.app_names)


@lru_cache(maxsize=1000)
def _template(route: str, is_admin: bool) -> str:
    if route.startswith("api/"):
        return "/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route)
    return "admin" if is_admin else OTHER
