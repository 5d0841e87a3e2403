"""Errors as RFC 9457 problem details: one registry of codes, and the response that carries one.

Each app lists its codes in a module `problems`, which is imported when Django starts (`core.apps`).  Responses, the
OpenAPI schema, and docs/reference/problems.md come from the registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from django.http import HttpRequest, HttpResponse
from rest_framework import exceptions

from core.url_prefix import full_path

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemType:
    """What a code stands for.

    code: a stable word for programs.  status: the HTTP status.  description: for the documentation, when it occurs.
    detail: an example of the sentence that a response has.  members: an example of its further members.
    """

    code: str
    status: int
    description: str
    detail: str
    members: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Return the code in words: a summary that is the same for each problem of the type (RFC 9457 §3.1.3)."""
        words = [_AS_WORDS.get(word, word) for word in self.code.split("_")]
        return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])

    @property
    def uri(self) -> str:
        """Return where the type is documented, relative to any URL of the API (RFC 9457 §3.1.1)."""
        return full_path(f"/api/problems/{self.code}")


# Words that `title` writes differently than codes do.
_AS_WORDS = {"json": "JSON", "api": "API", "uri": "URL"}


_registry: dict[str, ProblemType] = {}


def register(*types: ProblemType) -> None:
    """Add problem types to the registry.  Raises ValueError for a code that is taken."""
    for problem_type in types:
        if _registry.setdefault(problem_type.code, problem_type) != problem_type:
            raise ValueError(f"the problem code {problem_type.code} is registered twice")


def problem_type(code: str) -> ProblemType:
    """Return what `code` stands for.  Raises LookupError for a code that no app has registered."""
    try:
        return _registry[code]
    except KeyError:
        raise LookupError(f"no app has registered the problem code {code!r}") from None


def problem_types() -> list[ProblemType]:
    """Return every registered type, by status and code."""
    return sorted(_registry.values(), key=lambda one: (one.status, one.code))


register(
    ProblemType(
        "invalid",
        400,
        "A field, parameter, or header is not valid; `errors` names each one.",
        "The event is not valid.",
        {"errors": [{"pointer": "/type", "detail": "is required"}]},
    ),
    ProblemType(
        "invalid_json",
        400,
        "The body is empty or not JSON (RFC 8259).",
        "The body is not valid JSON: unexpected end of data.",
    ),
    ProblemType(
        "incomplete_body",
        400,
        "The connection ended before the whole body had arrived.",
        "The body ended before its Content-Length.",
    ),
    ProblemType(
        "bad_request",
        400,
        "The request is malformed: a header, the host, or the path.",
        "Content-Length is not a number.",
    ),
    ProblemType("forbidden", 403, "The request is refused, whatever key it has.", "This is not allowed."),
    ProblemType(
        "origin_not_allowed",
        403,
        "A page asked from an origin that isn't in `CORS_ALLOWED_ORIGINS`.",
        "Pages of this origin may not use the API.",
    ),
    ProblemType(
        "not_found",
        404,
        "There is no such resource in the key's organization, or an id in the path is malformed.",
        "There is no subscription with this id in your organization.",
    ),
    ProblemType(
        "path_not_found",
        404,
        "There is no such path; `detail` suggests one that there is.",
        "There is no /api/subscription. Did you mean /api/subscriptions?",
    ),
    ProblemType(
        "method_not_allowed",
        405,
        "The URL exists but doesn't support this method; `Allow` lists the methods it supports.",
        "There is no PUT here. Use GET, PATCH, or DELETE.",
    ),
    ProblemType(
        "request_timeout",
        408,
        "The body did not arrive in time.",
        "The body did not arrive within 30 seconds. Nothing was stored.",
    ),
    ProblemType(
        "too_large",
        413,
        "The body is larger than `limit_bytes`.",
        "The body is over the limit of 262144 bytes.",
        {"limit_bytes": 262144},
    ),
    ProblemType("uri_too_long", 414, "The URL is too long.", "The URL is longer than 4096 characters."),
    ProblemType(
        "unsupported_content_encoding",
        415,
        "The body is compressed with something else than gzip.",
        "Send the body with Content-Encoding `gzip`, or without.",
    ),
    ProblemType(
        "unsupported_media_type",
        415,
        "The content type is missing, or this operation doesn't support it.",
        "The content type must be application/json.",
    ),
    ProblemType(
        "internal_error",
        500,
        "An internal error, which was logged with the request's id.",
        "An internal error occurred. It was logged with the request id.",
    ),
    ProblemType(
        "database_busy",
        503,
        "Another transaction held what the request needs, or it took too long; retry after `Retry-After`.",
        "The database was busy. Nothing was stored; try again.",
    ),
    ProblemType(
        "database_unavailable",
        503,
        "The database can't be reached or can't store anything; retry after `Retry-After`.",
        "The database is not available. Nothing was stored; try again.",
    ),
)


class Problem(exceptions.APIException):
    """An error response, raised.

    code: registered, from which come status and title.  detail: a sentence for people.  errors: for validation, pairs
    of JSON pointer (RFC 6901; `?name` for a query parameter, `#Name` for a header) and reason.  headers: further
    response headers.  extra: further members of the problem document.  Raises LookupError for an unknown code.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, code)
        self.type = problem_type(code)
        self.status_code = self.type.status
        self.code = code
        self.sentence = detail
        self.errors = [{"pointer": pointer, "detail": reason} for pointer, reason in errors]
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


def invalid(errors: Iterable[tuple[str, str]], detail: str = "The request is not valid.") -> Problem:
    """Return a 400 that names each wrong field."""
    return Problem("invalid", detail, errors=errors)


def not_found(detail: str = "There is no such resource in your organization.") -> Problem:
    """Return the 404 for a resource that doesn't exist or belongs to another organization."""
    return Problem("not_found", detail)


def no_such(what: str) -> Problem:
    """Return the 404 for an id.  what: what would have it, such as `subscription`."""
    return not_found(f"There is no {what} with this id in your organization.")


def internal_error() -> Problem:
    """Return the 500 for a fault of ours, which the caller logs."""
    return Problem("internal_error", "An internal error occurred. It was logged with the request id.")


def database_busy() -> Problem:
    """Return the 503 for a transaction that waited or ran for too long and was rolled back: it can be sent at once."""
    return Problem(
        "database_busy", "The database was busy. Nothing was stored; try again.", headers={"Retry-After": "1"}
    )


def database_unavailable() -> Problem:
    """Return the 503 for a database that can't be reached or can't store anything; nothing was stored."""
    return Problem(
        "database_unavailable",
        "The database is not available. Nothing was stored; try again.",
        headers={"Retry-After": "2"},
    )


# Clients don't need these to be named.
_NOT_NAMED = {"HEAD", "OPTIONS"}


def no_method(method: str, allowed: Sequence[str], hint: str = "") -> Problem:
    """Return the 405 for a method that a path doesn't have.  allowed: those that it has.  hint: what to do instead."""
    named = [one for one in allowed if one not in _NOT_NAMED]
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])}{',' if len(named) > 2 else ''} or {named[-1]}"
    sentence = f"There is no {method[:20]} here. {hint or f'Use {listed}.'}"
    return Problem("method_not_allowed", sentence, headers={"Allow": ", ".join(allowed)})


def only_get(request: HttpRequest) -> HttpResponse | None:
    """Return the 405 of a plain view that only reads, or None for GET and HEAD."""
    if request.method in {"GET", "HEAD"}:
        return None
    return problem_response(request, no_method(request.method or "", ["GET", "HEAD"]))


def document(request: Any, problem: Problem) -> dict[str, Any]:
    """Return the problem as the members of RFC 9457 §3.1 plus ours."""
    body: dict[str, Any] = {
        "type": problem.type.uri,
        "title": problem.type.title,
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
    """Return the problem as a plain Django response."""
    body = orjson.dumps(document(request, problem))
    # Set here: a request that is refused before Django's middleware would otherwise get a chunked response.
    headers = {**problem.headers, "Content-Length": str(len(body))}
    response = HttpResponse(body, status=problem.status_code, content_type=MEDIA_TYPE, headers=headers)
    response.problem_code = problem.code  # type: ignore[attr-defined]  # for the middleware, which counts them
    return response
