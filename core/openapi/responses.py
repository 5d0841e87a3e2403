"""Responses that operations share: the headers of every response, and the errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from drf_spectacular.utils import OpenApiExample, OpenApiResponse

from core.openapi.descriptions import ERROR_DETAIL
from core.openapi.types import Schema
from core.problems import MEDIA_TYPE, ProblemType, problem_type, problem_types

REQUEST_ID = "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e90"
RATE_LIMIT_FIELDS = ("RateLimit", "RateLimit-Policy")

HEADERS: Schema = {
    "X-Request-Id": {
        "description": "The request's id: the one you sent, or a new one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
        "example": REQUEST_ID,
    },
    "X-Response-Time": {
        "description": "How long the server took to respond.",
        "required": True,
        "schema": {"type": "string", "pattern": r"^[0-9]+\.[0-9]{2}ms$"},
        "example": "3.21ms",
    },
    "Retry-After": {
        "description": "Seconds to wait before the next attempt.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "example": "5",
    },
    "RateLimit": {
        "description": "What is left of the quota (`r`), and the seconds until it is reset (`t`); "
        "IETF draft-ietf-httpapi-ratelimit-headers. Absent when the organization has no limit.",
        "schema": {"type": "string"},
        "example": '"events";r=59999;t=42',
    },
    "RateLimit-Policy": {
        "description": "The quota (`q`) in a window of `w` seconds. Absent when the organization has no limit.",
        "schema": {"type": "string"},
        "example": '"events";q=60000;w=60',
    },
    "Idempotency-Replayed": {
        "description": "`true` if this is the first response to a request with this `Idempotency-Key`, again.",
        "schema": {"type": "string", "enum": ["true"]},
        "example": "true",
    },
    "WWW-Authenticate": {
        "description": "How to authenticate (RFC 6750).",
        "required": True,
        "schema": {"type": "string"},
        "example": 'Bearer realm="triggers"',
    },
}

EVERY_RESPONSE = ("X-Request-Id", "X-Response-Time")


def header_refs(*names: str) -> Schema:
    """Return references to the headers with these names."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


PROBLEM: Schema = {"$ref": "#/components/schemas/Problem"}

PROBLEM_SCHEMA: Schema = {
    "type": "object",
    "description": "An error (RFC 9457). `status` and `code` are for programs, `detail` is for people.",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "additionalProperties": True,  # members that belong to a code
    "properties": {
        "type": {
            "type": "string",
            "format": "uri-reference",
            "description": "Where `code` is documented: a page of this server.",
        },
        "title": {"type": "string", "description": "The code in words."},
        "status": {
            "type": "integer",
            "minimum": 400,
            "maximum": 599,
            "description": "The HTTP status of the response.",
        },
        "detail": {"type": "string", "description": "What is wrong, in a sentence."},
        "code": {"type": "string", "description": "What is wrong, as a stable identifier."},
        "request_id": {"type": ["string", "null"], "description": "As in `X-Request-Id`; quote it in a bug report."},
        "errors": {
            "type": "array",
            "description": "Each thing that is wrong with the request.",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "JSON pointer into the body (RFC 6901; empty for the whole body), "
                        "`?name` for a query parameter, `#Name` for a header.",
                    },
                    "detail": {"type": "string", "description": ERROR_DETAIL},
                },
            },
        },
    },
}


# What can go wrong with any operation, by status, and the additional headers of such a response.
_SHARED_ERRORS: dict[int, tuple[str, tuple[str, ...]]] = {
    400: ("The request is not valid. Nothing was stored.", ()),
    401: ("The request is not authenticated.", ("WWW-Authenticate",)),
    403: ("The key isn't allowed to do this.", ()),
    404: ("There is no such resource in this organization.", ()),
    413: ("The request is too large. Nothing was stored.", ()),
    414: ("The URL is too long.", ()),
    415: ("The body has a content type or encoding that this operation doesn't support.", ()),
    422: ("The request is valid but can't be served. Nothing was stored.", ()),
    429: ("Too many requests. Nothing was stored.", ("Retry-After", *RATE_LIMIT_FIELDS)),
    500: ("An internal error.", ()),
    503: ("The service can't handle the request now. Nothing was stored; try again.", ("Retry-After",)),
}


def problem_example(problem: ProblemType) -> Schema:
    """Return an example of the problem document."""
    return {
        "type": problem.uri,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": REQUEST_ID,
        **problem.members,
    }


def _describe(problems: Iterable[ProblemType]) -> str:
    return "\n".join(f"- `{one.code}`: {one.description}" for one in problems)


def shared_errors() -> Schema:
    """Return the error responses that operations share, by status, with every registered code of that status."""
    by_status: dict[int, list[ProblemType]] = defaultdict(list)
    for problem in problem_types():
        by_status[problem.status].append(problem)
    responses: Schema = {}
    for status, (summary, headers) in _SHARED_ERRORS.items():
        responses[str(status)] = _error_response(f"{summary}\n\n", headers, by_status[status])
    return responses


def conflict_response(*codes: str) -> Schema:
    """Return a 409 response as a part of the document.  codes: the registered problem codes that it may have."""
    return _error_response("", (), [problem_type(code) for code in codes])


def _error_response(summary: str, headers: Iterable[str], problems: list[ProblemType]) -> Schema:
    return {
        "description": summary + _describe(problems),
        "headers": header_refs(*headers, *EVERY_RESPONSE),
        "content": {
            MEDIA_TYPE: {
                "schema": PROBLEM,
                "examples": {one.code: {"value": problem_example(one)} for one in problems},
            }
        },
    }


def conflict(*codes: str) -> dict[tuple[int, str], OpenApiResponse]:
    """Return the 409 response of an operation.  codes: the registered problem codes that it may have."""
    return refusals(*codes)


def refusals(*codes: str) -> dict[tuple[int, str], OpenApiResponse]:
    """Return the responses of an operation for registered problem codes, each with the status of its codes."""
    by_status: dict[int, list[ProblemType]] = defaultdict(list)
    for code in codes:
        by_status[problem_type(code).status].append(problem_type(code))
    return {
        (status, MEDIA_TYPE): OpenApiResponse(
            PROBLEM,
            _describe(problems),
            [OpenApiExample(one.code, problem_example(one), media_type=MEDIA_TYPE) for one in problems],
        )
        for status, problems in by_status.items()
    }
