"""Parameters and response headers for the decorators of views."""

from __future__ import annotations

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter

from core.openapi.responses import HEADERS, RATE_LIMIT_FIELDS
from core.query import DEFAULT_LIMIT, MAX_LIMIT


def query(
    name: str, description: str, type_: Any = OpenApiTypes.STR, *, enum: list[str] | None = None
) -> OpenApiParameter:
    """Return an optional query parameter."""
    return OpenApiParameter(name, type_, OpenApiParameter.QUERY, description=description, enum=enum)


def path_id(name: str, description: str) -> OpenApiParameter:
    """Return an id in a path. Without it, the description of `event_id` is "The id of the event."."""
    return OpenApiParameter(name, OpenApiTypes.UUID, OpenApiParameter.PATH, description=description)


PAGE = [
    OpenApiParameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        OpenApiParameter.QUERY,
        description="Maximum number of rows in the response.",
    ),
    query("order", "`desc`: newest first, which is the default; `asc`: oldest first.", enum=["desc", "asc"]),
    query("cursor", "`next_cursor` of the previous page. Keep the other parameters the same."),
]

SINCE = query("since", "Only those created at this time or later (ISO 8601; default UTC).", OpenApiTypes.DATETIME)
UNTIL = query("until", "Only those created before this time (ISO 8601; default UTC).", OpenApiTypes.DATETIME)


def location(*statuses: int) -> OpenApiParameter:
    """Return the `Location` header of the responses with these statuses."""
    return OpenApiParameter(
        "Location",
        {"type": "string", "format": "uri-reference"},
        OpenApiParameter.HEADER,
        response=list(statuses),
        description="The URL of the resource.",
    )


def rate_limit(*statuses: int) -> list[OpenApiParameter]:
    """Return the rate limit's headers of the responses with these statuses."""
    return [
        OpenApiParameter(
            name,
            HEADERS[name]["schema"],
            OpenApiParameter.HEADER,
            response=list(statuses),
            description=HEADERS[name]["description"],
        )
        for name in RATE_LIMIT_FIELDS
    ]
