"""Django's error pages: problems under /api/, HTML elsewhere."""

from __future__ import annotations

import sys

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import reverse

from core.db import DatabaseFault, fault_of
from core.paths import below_api, nothing_at
from core.problems import Problem, internal_error, problem_response


def _is_api(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/") or request.path_info == "/api"


def _wants_page(request: HttpRequest) -> bool:
    """Return whether the client is a browser: programs don't name HTML in `Accept`."""
    return "text/html" in request.META.get("HTTP_ACCEPT", "")


def _page(request: HttpRequest, status: int, title: str, text: str) -> HttpResponse:
    """Return a page for people that says what is wrong, and leads back to the admin from below it.

    It needs neither the database nor a session, either of which may be what is wrong.
    """
    home = reverse("admin:index")
    context = {
        "title": title,
        "text": text,
        "home": home if request.path.startswith(home) else "",
        "request_id": getattr(request, "request_id", ""),
    }
    return HttpResponse(render_to_string("core/error_page.html", context), status=status)


def handler400(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 400 page: a problem under /api/."""
    if _is_api(request):
        return problem_response(request, Problem("bad_request", "The request can't be served as it is."))
    return _page(request, 400, "Bad request", "The request can't be served as it is.")


def handler403(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 403 page: a problem under /api/."""
    if _is_api(request):
        return problem_response(request, Problem("forbidden", "This is not allowed."))
    return _page(
        request, 403, "Not allowed", "You may not see this page, or not do this. Ask an owner if you should be able to."
    )


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 404 page: a problem under /api/, and for a program that forgot /api."""
    if _is_api(request):
        return problem_response(request, nothing_at(request.path_info))
    if not _wants_page(request) and (instead := below_api(request.path_info)):
        return problem_response(request, nothing_at(request.path_info, instead))
    return _page(request, 404, "Not found", "There is no page at this address.")


# What the page says of a fault of the database's: title and text.
_DATABASE_FAULTS = {
    DatabaseFault.AWAY: (
        "The database is not responding",
        "This page comes back with the database. What was accepted is safe, and is delivered then.",
    ),
    DatabaseFault.BUSY: (
        "The database was busy",
        "Another transaction held what this page needs, or this one took too long and was rolled back. "
        "Load the page again.",
    ),
    DatabaseFault.FULL: (
        "The database can't store or read this",
        "It responds, but its disk or memory is full, or a file is damaged. PostgreSQL's log says which. "
        "What was accepted is safe.",
    ),
}


def handler500(request: HttpRequest) -> HttpResponse:
    """Django's 500 page: a problem under /api/.  A fault of the database's is a 503, which says what kind of fault."""
    if _is_api(request):
        return problem_response(request, internal_error())
    error = sys.exception()  # Django calls this while the exception is being handled
    fault = fault_of(error) if isinstance(error, Exception) else None
    if fault is not None:
        return _page(request, 503, *_DATABASE_FAULTS[fault])
    return _page(
        request, 500, "Something went wrong", "This is a fault of ours. The log of the web process says what happened."
    )


def locked_out(request: HttpRequest, response: HttpResponse | None, credentials: object) -> HttpResponse:
    """Return the page for a name that has been locked after too many wrong passwords: AXES_LOCKOUT_CALLABLE."""
    return _page(
        request, 429, "Too many failed log-ins",
        "This name is locked at this address for a while. Wait, or ask whoever runs the server to unlock it.",
    )  # fmt: skip
