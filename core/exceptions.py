"""From exceptions to problems: which problem stands for an exception, and which exceptions are logged."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse
from rest_framework import exceptions

from core.db import DatabaseFault, fault_of
from core.problems import (
    Problem,
    database_busy,
    database_unavailable,
    internal_error,
    invalid,
    no_method,
    not_found,
    problem_response,
)

log = structlog.get_logger()


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
    if isinstance(error, exceptions.APIException):
        return _of_drf(error)
    if isinstance(error, Http404):
        return not_found()
    if isinstance(error, RequestDataTooBig):
        return Problem("too_large", "The request body is too large.")
    if isinstance(error, SuspiciousOperation):
        return Problem("bad_request", "The request can't be served as it is.")
    fault = fault_of(error)
    if fault is None:
        return None
    return database_busy() if fault is DatabaseFault.BUSY else database_unavailable()


def _of_drf(error: exceptions.APIException) -> Problem | None:
    """Return the problem for one of DRF's own errors.  Views here raise none of them except the first two."""
    if isinstance(error, exceptions.MethodNotAllowed):
        return Problem("method_not_allowed", str(error.detail))
    if isinstance(error, exceptions.UnsupportedMediaType):
        return Problem("unsupported_media_type", "The content type must be application/json.")
    if isinstance(error, exceptions.NotFound):
        return not_found()
    if isinstance(error, exceptions.PermissionDenied):
        return Problem("forbidden", str(error.detail))
    return Problem("bad_request", str(error.detail)) if error.status_code < 500 else None


def problem_for(error: Exception, path: str) -> Problem:
    """Return the problem that an exception results in; log the exception if it is a fault of ours."""
    problem = as_problem(error)
    if problem is None:
        log.error("unhandled_error", path=path, exc_info=error)
        return internal_error()
    if problem.status_code >= 500:
        log.warning("request_failed", path=path, code=problem.code, error=type(error).__name__)
    return problem


def exception_handler(error: Exception, context: dict[str, Any]) -> HttpResponse:
    """Return the problem response for an exception of a DRF view; log the exception if it is a fault of ours.

    DRF's EXCEPTION_HANDLER.  The response is rendered here, so that a view whose renderer writes HTML still responds
    with JSON.
    """
    request = context["request"]
    if isinstance(error, exceptions.MethodNotAllowed):
        view = context["view"]
        error = no_method(
            request.method, view.allowed_methods, getattr(view, "method_hints", {}).get(request.method, "")
        )
    return problem_response(request, problem_for(error, request.path))


def log_page_error(sender: Any, request: HttpRequest | None = None, **more: Any) -> None:
    """Log the cause of a 500 page: an exception outside DRF's views, whose exceptions go to `exception_handler`.

    A receiver of Django's signal `got_request_exception`, which is sent while the exception is being handled.
    """
    error = sys.exception()
    path = request.path if request is not None else ""
    problem = as_problem(error) if isinstance(error, Exception) else None
    if problem is None:
        log.error("unhandled_error", path=path, exc_info=error)
    else:
        log.warning("request_failed", path=path, code=problem.code, error=type(error).__name__)
