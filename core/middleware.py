"""What every request gets: an id, the time it took, one log line, and bounds on its path."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from core.problems import Problem, problem_response

log = structlog.get_logger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_URL_CHARACTERS = 4096


def client_address(request: HttpRequest) -> str:
    """Return the caller's address: the peer, or what TRUSTED_PROXIES proxies in front of us saw."""
    hops = settings.TRUSTED_PROXIES
    if hops:
        forwarded = [part.strip() for part in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")]
        if len(forwarded) >= hops and forwarded[-hops]:
            return str(forwarded[-hops])
    return str(request.META.get("REMOTE_ADDR", ""))


def _is_too_long(request: HttpRequest) -> bool:
    """Tell whether the URL, quoted as it was sent, has more than MAX_URL_CHARACTERS."""
    # Quoting makes at most twelve characters of one: four bytes, each as %XX. Most URLs needn't be quoted to know.
    characters = len(request.path) + len(request.META.get("QUERY_STRING", "")) + 1
    return characters * 12 > MAX_URL_CHARACTERS and len(request.get_full_path()) > MAX_URL_CHARACTERS


class RequestMiddleware:
    """Echo or make `X-Request-Id`, tell `X-Response-Time`, log the request once."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        started = time.perf_counter()
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        request.request_id = request_id  # type: ignore[attr-defined]
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            is_api = request.path_info.startswith("/api/")
            if is_api and request.path_info.endswith("/"):
                request.path_info = request.path_info.rstrip("/")
            if is_api and _is_too_long(request):
                response: HttpResponse = problem_response(
                    request, Problem(414, "uri_too_long", f"The URL is longer than {MAX_URL_CHARACTERS} characters.")
                )
            else:
                response = self.get_response(request)
            elapsed_ms = (time.perf_counter() - started) * 1000
            response["X-Request-Id"] = request_id
            response["X-Response-Time"] = f"{elapsed_ms:.2f}ms"
            if is_api:
                response.headers.setdefault("Cache-Control", "no-store")
            log.info(
                "request",
                method=request.method,
                path=request.path,
                status=response.status_code,
                duration_ms=round(elapsed_ms, 2),
            )
            return response
        finally:
            structlog.contextvars.unbind_contextvars("request_id")
