"""Django's error pages: problems under /api/, HTML elsewhere."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views import defaults

from core.paths import below_api, nothing_at
from core.problems import Problem, internal_error, problem_response


def _is_api(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/") or request.path_info == "/api"


def _wants_page(request: HttpRequest) -> bool:
    """Return whether the client is a browser: programs don't name HTML in `Accept`."""
    return "text/html" in request.META.get("HTTP_ACCEPT", "")


def handler400(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 400 page: a problem under /api/."""
    if _is_api(request):
        return problem_response(request, Problem("bad_request", "The request can't be served as it is."))
    return defaults.bad_request(request, exception)


def handler403(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 403 page: a problem under /api/."""
    if _is_api(request):
        return problem_response(request, Problem("forbidden", "This is not allowed."))
    return defaults.permission_denied(request, exception)


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 404 page: a problem under /api/, and for a program that forgot /api."""
    if _is_api(request):
        return problem_response(request, nothing_at(request.path_info))
    if not _wants_page(request) and (instead := below_api(request.path_info)):
        return problem_response(request, nothing_at(request.path_info, instead))
    return defaults.page_not_found(request, exception)


def handler500(request: HttpRequest) -> HttpResponse:
    """Django's 500 page: a problem under /api/."""
    if _is_api(request):
        return problem_response(request, internal_error())
    return defaults.server_error(request)
