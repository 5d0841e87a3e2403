"""`/api/problems`: what the `type` of a problem document leads to."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from core.paths import nothing_at
from core.problems import ProblemType, only_get, problem_response, problem_types
from core.suggestions import closest


def _describe(one: ProblemType) -> dict[str, Any]:
    return {
        "type": one.uri,
        "code": one.code,
        "title": one.title,
        "status": one.status,
        "description": one.description,
        "example": {"detail": one.detail, **one.members},
    }


def _respond(request: HttpRequest, template: str, content: dict[str, Any]) -> HttpResponse:
    """Return a page for a browser, and JSON for other clients."""
    if "text/html" in request.headers.get("Accept", ""):
        response: HttpResponse = render(request, template, content)
    else:
        response = JsonResponse(content)
    response["Vary"] = "Accept"
    return response


def problem_list(request: HttpRequest) -> HttpResponse:
    """Serve the list of all problem types."""
    if (refusal := only_get(request)) is not None:
        return refusal
    return _respond(request, "core/problem_list.html", {"data": [_describe(one) for one in problem_types()]})


def problem_page(request: HttpRequest, code: str) -> HttpResponse:
    """Serve one problem type."""
    if (refusal := only_get(request)) is not None:
        return refusal
    types = {one.code: one for one in problem_types()}
    if code not in types:
        meant = closest(code, types)
        return problem_response(request, nothing_at(request.path_info, f"/api/problems/{meant}" if meant else None))
    return _respond(request, "core/problem.html", _describe(types[code]))
