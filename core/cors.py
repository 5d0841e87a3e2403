"""Requests from pages of other origins (CORS), for the origins in CORS_ALLOWED_ORIGINS.

Everybody who opens a page has the key in it, so this is for pages whose users may have the key, such as an internal
tool.  Cookies have no effect under /api/, so credentials aren't allowed.
"""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from core.problems import Problem, problem_response

ALLOWED_METHODS = "GET, POST, PATCH, DELETE, OPTIONS"
ALLOWED_HEADERS = (
    "authorization, content-encoding, content-type, idempotency-key, last-event-id, traceparent, tracestate, "
    # Headers of CloudEvents in binary mode.  Extensions may have any name, so they can't be listed.
    "x-api-key, x-request-id, ce-specversion, ce-id, ce-source, ce-type, ce-time, ce-subject, ce-dataschema"
)
EXPOSED_HEADERS = (
    "Deprecation, Idempotency-Replayed, Link, Location, RateLimit, RateLimit-Policy, Retry-After, Sunset, "
    "X-Request-Id, X-Response-Time"
)
PREFLIGHT_SECONDS = 600


def cors_headers(origin: str) -> dict[str, str]:
    """Return the headers of a response to a request with this `Origin`, which may be empty."""
    if not settings.CORS_ALLOWED_ORIGINS:
        return {}
    if origin not in settings.CORS_ALLOWED_ORIGINS:
        return {"Vary": "Origin"}
    return {
        "Vary": "Origin",
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
    }


class CorsMiddleware:
    """Responds to preflight requests below /api/, and lets pages of allowed origins read the responses."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        origin = request.headers.get("Origin", "")
        if not request.path_info.startswith("/api/"):
            return self.get_response(request)
        is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        response = self._preflight(request, origin) if is_preflight else self.get_response(request)
        for name, value in cors_headers(origin).items():
            if name == "Vary" and response.has_header("Vary"):
                value = f"{response['Vary']}, {value}"
            response[name] = value
        return response

    @staticmethod
    def _preflight(request: HttpRequest, origin: str) -> HttpResponse:
        if origin not in settings.CORS_ALLOWED_ORIGINS:
            return problem_response(request, Problem("origin_not_allowed", "Pages of this origin may not use the API."))
        response = HttpResponse(status=204)
        response["Access-Control-Allow-Methods"] = ALLOWED_METHODS
        response["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
        response["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response
