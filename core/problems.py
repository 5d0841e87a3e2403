"""Errors as RFC 9457 problem details, the same shape everywhere under /api/."""

from __future__ import annotations

import http
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import structlog
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse
from django.views import defaults
from rest_framework import exceptions

from core.db import is_transient

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"


class Problem(exceptions.APIException):
    """An answer that is an error.

    status: the HTTP status.  code: a stable word for programs.  detail: a sentence for people.
    errors: for validation, pairs of JSON pointer (RFC 6901; `?name` for a query parameter) and reason.
    headers: extra response headers.  extra: further members of the problem document.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, code)
        self.status_code = status
        self.code = code
        self.sentence = detail
        self.errors = [{"pointer": pointer, "detail": reason} for pointer, reason in errors]
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


def invalid(errors: Iterable[tuple[str, str]], detail: str = "The request is not valid.") -> Problem:
    """Return a 400 that names each wrong field."""
    return Problem(400, "invalid", detail, errors=errors)


def not_found() -> Problem:
    """Return the 404 that also stands for another organization's rows."""
    return Problem(404, "not_found", "There is no such resource.")


def database_unavailable() -> Problem:
    """Return the 503 for a database that can't be reached; nothing was stored."""
    return Problem(
        503,
        "database_unavailable",
        "The database is not available. Nothing was stored; try again.",
        headers={"Retry-After": "2"},
    )


def only_get(request: HttpRequest) -> HttpResponse | None:
    """Return the 405 of a plain view that only reads, or None for GET and HEAD."""
    if request.method in {"GET", "HEAD"}:
        return None
    return problem_response(request, Problem(405, "method_not_allowed", "Use GET.", headers={"Allow": "GET, HEAD"}))


def document(request: Any, problem: Problem) -> dict[str, Any]:
    """Return the problem as the members of RFC 9457 §3.1 plus ours."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(problem.status_code).phrase,
        "status": problem.status_code,
        "detail": problem.sentence,
        "code": problem.code,
        "request_id": getattr(request, "request_id", None),
    }
    if problem.errors:
        body["errors"] = problem.errors
    body.update(problem.extra)
    return body


def problem_response(request: HttpRequest, problem: Problem) -> HttpResponse:
    """Return the problem as a plain Django response, for errors outside DRF's views."""
    body = orjson.dumps(document(request, problem))
    # Told here: what is refused before Django's middleware would otherwise go out in chunks.
    headers = {**problem.headers, "Content-Length": str(len(body))}
    return HttpResponse(body, status=problem.status_code, content_type=MEDIA_TYPE, headers=headers)


def _pointers(detail: Any, pointer: str = "") -> Iterable[tuple[str, str]]:
    """Yield (pointer, reason) for each leaf of a DRF validation error."""
    if isinstance(detail, Mapping):
        for name, inner in detail.items():
            step = "" if name == "non_field_errors" else "/" + str(name).replace("~", "~0").replace("/", "~1")
            yield from _pointers(inner, pointer + step)
    elif isinstance(detail, list):
        for position, inner in enumerate(detail):
            nested = isinstance(inner, Mapping | list)
            yield from _pointers(inner, f"{pointer}/{position}" if nested else pointer)
    else:
        yield pointer, str(detail)


def as_problem(error: BaseException) -> Problem | None:
    """Return the problem that stands for `error`, or None when it is a fault of ours."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, exceptions.ValidationError):
        return invalid(_pointers(error.detail))
    if isinstance(error, exceptions.MethodNotAllowed):
        return Problem(405, "method_not_allowed", str(error.detail))
    if isinstance(error, exceptions.UnsupportedMediaType):
        return Problem(415, "unsupported_media_type", "The content type must be application/json.")
    if isinstance(error, exceptions.APIException):
        code = error.get_codes()
        return Problem(error.status_code, code if isinstance(code, str) else "error", str(error.detail))
    if isinstance(error, Http404):
        return not_found()
    if isinstance(error, RequestDataTooBig):
        return Problem(413, "too_large", "The request body is too large.")
    if isinstance(error, SuspiciousOperation):
        return Problem(400, "bad_request", "The request can't be served as it is.")
    if is_transient(error):
        return database_unavailable()
    return None


def exception_handler(error: Exception, context: dict[str, Any]) -> HttpResponse:
    """DRF's hook: turn any exception of a view into a problem; log those that are faults of ours.

    The answer is rendered here: a view whose renderer writes HTML still answers with JSON.
    """
    request = context["request"]
    problem = as_problem(error)
    if problem is None:
        log.error("unhandled_error", path=request.path, exc_info=error)
        problem = Problem(500, "internal_error", "Something went wrong here. It was logged under the request id.")
    elif problem.status_code >= 500:
        log.warning("request_failed", path=request.path, code=problem.code, error=type(error).__name__)
    return problem_response(request, problem)


def log_page_error(sender: Any, request: HttpRequest | None = None, **more: Any) -> None:
    """Log what Django answers with its 500 page: an error outside DRF's views, which end in `exception_handler`.

    A receiver of Django's signal `got_request_exception`, sent while the exception is handled.
    """
    error = sys.exception()
    path = request.path if request is not None else ""
    problem = as_problem(error) if isinstance(error, Exception) else None
    if problem is None:
        log.error("unhandled_error", path=path, exc_info=error)
    else:
        log.warning("request_failed", path=path, code=problem.code, error=type(error).__name__)


def _is_api(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/") or request.path_info == "/api"


def handler400(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 400 page: a problem under /api/."""
    if _is_api(request):
        return problem_response(request, Problem(400, "bad_request", "The request can't be served as it is."))
    return defaults.bad_request(request, exception)


def handler403(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 403 page: a problem under /api/."""
    if _is_api(request):
        return problem_response(request, Problem(403, "forbidden", "This is not allowed."))
    return defaults.permission_denied(request, exception)


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 404 page: a problem under /api/."""
    if _is_api(request):
        return problem_response(request, not_found())
    return defaults.page_not_found(request, exception)


def handler500(request: HttpRequest) -> HttpResponse:
    """Django's 500 page: a problem under /api/."""
    if _is_api(request):
        problem = Problem(500, "internal_error", "Something went wrong here. It was logged under the request id.")
        return problem_response(request, problem)
    return defaults.server_error(request)
