"""What every request gets: an id, its duration, one log line, and a limit on the length of its URL."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse

from core.deprecations import add_deprecation_headers
from core.ids import new_request_id
from core.logs import current_request_id
from core.metrics.requests import PROBLEMS, count_request, route_of
from core.problems import Problem, problem_response

log = structlog.get_logger()

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_URL_CHARACTERS = 4096


def _is_too_long(request: HttpRequest) -> bool:
    """Return whether the URL, percent-encoded as it was sent, is longer than MAX_URL_CHARACTERS."""
    # A character becomes at most twelve: four bytes, each as %XX. That bound spares most URLs the encoding.
    characters = len(request.path) + len(request.META.get("QUERY_STRING", "")) + 1
    return characters * 12 > MAX_URL_CHARACTERS and len(request.get_full_path()) > MAX_URL_CHARACTERS


class RequestMiddleware:
    """Set `X-Request-Id` (the client's, or a new one) and `X-Response-Time`, and log the request once."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        started = time.perf_counter()
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
        request.request_id = request_id  # type: ignore[attr-defined]
        bound = current_request_id.set(request_id)
        try:
            is_api = request.path_info.startswith("/api/")
            if is_api and request.path_info.endswith("/"):
                request.path_info = request.path_info.rstrip("/")
            if is_api and _is_too_long(request):
                response: HttpResponse = problem_response(
                    request, Problem("uri_too_long", f"The URL is longer than {MAX_URL_CHARACTERS} characters.")
                )
            else:
                response = self.get_response(request)
            seconds = time.perf_counter() - started
            elapsed_ms = seconds * 1000
            route = route_of(request)
            count_request(request.method or "", route, response.status_code, seconds)
            if (code := getattr(response, "problem_code", None)) is not None:
                PROBLEMS.inc(route, code)
            response["X-Request-Id"] = request_id
            response["X-Response-Time"] = f"{elapsed_ms:.2f}ms"
            if is_api:
                response.headers.setdefault("Cache-Control", "no-store")
                add_deprecation_headers(request, response)
            log.info(
                "request",
                method=request.method,
                path=request.path,
                status=response.status_code,
                duration_ms=round(elapsed_ms, 2),
            )
            return response
        finally:
            current_request_id.reset(bound)
