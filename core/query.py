"""Query parameters of list endpoints: filters, limits and cursors, each checked by name."""

from __future__ import annotations

import base64
import binascii
import datetime
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from django.db.models import Model, Q, QuerySet
from django.utils.dateparse import parse_datetime
from rest_framework.request import Request

from core.ids import parse_id
from core.problems import invalid
from core.suggestions import unknown_parameter

M = TypeVar("M", bound=Model)

DEFAULT_LIMIT = 50
MAX_LIMIT = 200


class ParameterError(ValueError):
    """A query parameter can't be used; the message says what was expected."""


def text(raw: str) -> str:
    """Return `raw` when it can be stored and compared as text."""
    if not raw or len(raw) > 255 or "\x00" in raw:
        raise ParameterError("must be 1 to 255 characters")
    return raw


def identifier(raw: str) -> uuid.UUID:
    """Return the UUID."""
    value = parse_id(raw)
    if value is None:
        raise ParameterError("must be a UUID")
    return value


def moment(raw: str) -> datetime.datetime:
    """Return the time, aware; a time without an offset is UTC."""
    try:
        # In a query string an unescaped `+00:00` arrives as ` 00:00`.
        value = parse_datetime(raw.replace(" ", "+") if raw.count(" ") == 1 and "T" in raw else raw)
        if value is not None and value.tzinfo is None:
            value = value.replace(tzinfo=datetime.UTC)
        if value is not None:
            value = value.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        value = None
    if value is None:
        raise ParameterError("must be an ISO 8601 time such as 2026-01-31T12:00:00Z")
    return value


def boolean(raw: str) -> bool:
    """Return the truth value of `true` or `false`."""
    if raw not in {"true", "false"}:
        raise ParameterError("must be true or false")
    return raw == "true"


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser that takes only these words."""

    def parse(raw: str) -> str:
        if raw not in choices:
            raise ParameterError("must be one of " + ", ".join(choices))
        return raw

    return parse


def _limit(raw: str) -> int:
    if not raw.isascii() or not raw.isdigit() or len(raw) > 6 or not 1 <= int(raw) <= MAX_LIMIT:
        raise ParameterError(f"must be a whole number from 1 to {MAX_LIMIT}")
    return int(raw)


def _cursor(raw: str) -> tuple[datetime.datetime, uuid.UUID]:
    error = ParameterError("is not a cursor that this endpoint gave out")
    if len(raw) > 200 or not raw.isascii():
        raise error
    try:
        decoded = base64.b64decode(raw.encode() + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True).decode()
        moment_text, _, id_text = decoded.partition("~")
        at = datetime.datetime.fromisoformat(moment_text)
        if at.tzinfo is None:
            raise error
        # At the edge of the calendar, an offset leads to times that Python can't represent.
        at = at.astimezone(datetime.UTC)
    except (ValueError, OverflowError, binascii.Error):
        raise error from None
    row_id = parse_id(id_text)
    if row_id is None:
        raise error
    return at, row_id


def _encode_cursor(row: Any) -> str:
    text_form = f"{row.created_at.isoformat()}~{row.id}"
    return base64.urlsafe_b64encode(text_form.encode()).decode().rstrip("=")


# For names that people use by mistake: the parameter that they mean.
_HINTS = {
    **dict.fromkeys(("page", "offset", "after", "starting_after", "next_cursor"), "cursor"),
    **dict.fromkeys(("per_page", "page_size", "size", "count"), "limit"),
    **dict.fromkeys(("sort", "order_by", "sort_by", "direction"), "order"),
    **dict.fromkeys(("created_after", "from", "start", "start_time"), "since"),
    **dict.fromkeys(("created_before", "before", "to", "end", "end_time"), "until"),
    **dict.fromkeys(("event_type", "event_types"), "type"),
    **dict.fromkeys(("url", "hookUrl"), "target_url"),
    "dry_run": "validate_only",
}


def parse_parameters(request: Request, parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Return the parsed parameters by name.

    Raises Problem 400 that names each parameter which is unknown, repeated or wrong.
    """
    values: dict[str, Any] = {}
    errors: list[tuple[str, str]] = []
    for name, given in request.query_params.lists():
        parser = parsers.get(name)
        if parser is None:
            errors.append((f"?{name[:80]}", unknown_parameter(name, sorted(parsers), _HINTS)))
        elif len(given) > 1:
            errors.append((f"?{name}", "is given more than once"))
        else:
            try:
                values[name] = parser(given[0])
            except ParameterError as error:
                errors.append((f"?{name}", str(error)))
    if errors:
        raise invalid(errors, "A query parameter is not valid.")
    return values


PAGE_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "limit": _limit, "cursor": _cursor, "order": one_of("desc", "asc"),
}  # fmt: skip


def is_ascending(parameters: Mapping[str, Any]) -> bool:
    """Return whether a list is to be in ascending order: the oldest first."""
    return bool(parameters.get("order") == "asc")


def newest(rows: QuerySet[M], most: int, order: Sequence[str] = ("-created_at", "-id")) -> QuerySet[M]:
    """Return the first `most` rows in this order.

    The index of a model with LIST_PARTS only has rows of the first of these conditions, and few rows meet the others:
    each part is read separately.  One statement, because a row may move from one part to another.
    """
    if rows.query.is_empty():  # nothing for a UNION
        return rows.order_by(*order)[:most]
    parts = [rows.filter(part) for part in getattr(rows.model, "LIST_PARTS", ())] or [rows]
    first, *others = [part.order_by(*order)[:most] for part in parts]
    return first.union(*others, all=True).order_by(*order)[:most] if others else first


def page(
    rows: QuerySet[M],
    parameters: Mapping[str, Any],
    render: Callable[[M], dict[str, Any]],
    *,
    by_id: bool = False,
) -> dict[str, Any]:
    """Return one page, newest first unless `order` is `asc`, as `{"data": [...], "next_cursor": ...}`.

    rows: ordered by nothing yet; its model has `created_at` and `id`.  by_id: order by the id alone, which
    is made in time order, too.  No count is made.
    """
    beyond, sign = ("gt", "") if is_ascending(parameters) else ("lt", "-")
    limit: int = parameters.get("limit", DEFAULT_LIMIT)
    if "cursor" in parameters:
        at, row_id = parameters["cursor"]
        if by_id:
            rows = rows.filter(**{f"id__{beyond}": row_id})
        else:
            # The first condition lets the index start at the cursor; the second is exact.
            rows = rows.filter(**{f"created_at__{beyond}e": at})
            rows = rows.filter(Q(**{f"created_at__{beyond}": at}) | Q(**{f"id__{beyond}": row_id}))
    if by_id:
        found = list(rows.order_by(f"{sign}id")[: limit + 1])
    else:
        found = list(newest(rows, limit + 1, (f"{sign}created_at", f"{sign}id")))
    following = _encode_cursor(found[limit - 1]) if len(found) > limit else None
    return {"data": [render(row) for row in found[:limit]], "next_cursor": following}
