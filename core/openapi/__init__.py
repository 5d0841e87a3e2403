"""The OpenAPI 3.1 schema.

A view's decorator describes what is specific to it (summary, parameters, bodies, successes, conflicts) with the helpers
of this package.  The error responses that any operation may give, and the headers that every response has, are added by
`generator`, from what the operation is: with a scope, a path parameter, a body.
"""

from core.openapi.pages import page_of
from core.openapi.parameters import PAGE, SINCE, UNTIL, location, path_id, query, rate_limit
from core.openapi.responses import HEADERS, conflict, refusals
from core.openapi.types import Schema

__all__ = [
    "HEADERS", "PAGE", "SINCE", "UNTIL", "Schema", "conflict", "location", "page_of", "path_id", "query", "rate_limit",
    "refusals",
]  # fmt: skip
