"""Actions on chosen rows: in bounded steps, and told plainly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest

from console.model_admin import BoundedAdmin

# An action on "all matching" takes this many rows at the most.
ACTION_BOUND = 10_000
ACTION_CHUNK = 500


class TooMany(Exception):
    """An action was asked for on more than ACTION_BOUND rows."""


def selected_ids(queryset: QuerySet[Any]) -> list[Any]:
    """Return the ids of what an action shall work on.  Raises TooMany over ACTION_BOUND."""
    ids = list(queryset.values_list("pk", flat=True)[: ACTION_BOUND + 1])
    if len(ids) > ACTION_BOUND:
        raise TooMany
    return ids


def chunks(ids: Sequence[Any]) -> Iterator[list[Any]]:
    """Return `ids` in pieces of ACTION_CHUNK."""
    for start in range(0, len(ids), ACTION_CHUNK):
        yield list(ids[start : start + ACTION_CHUNK])


def report(
    model_admin: BoundedAdmin, request: HttpRequest, what: str, changed: int, left_alone: dict[str, int]
) -> None:
    """Tell the operator how many rows changed and why the others didn't."""
    parts = [f"{changed} {what}."]
    rest = {reason: count for reason, count in left_alone.items() if count > 0}
    if rest:
        reasons = "; ".join(f"{count} {reason}" for reason, count in rest.items())
        parts.append(f"{sum(rest.values())} left alone: {reasons}.")
    model_admin.message_user(request, " ".join(parts), messages.SUCCESS if changed else messages.WARNING)


def refuse_too_many(model_admin: BoundedAdmin, request: HttpRequest, instead: str) -> None:
    """Tell the operator that an action was asked for on too much, and what to use instead."""
    model_admin.message_user(
        request,
        f"More than {ACTION_BOUND:,} rows match, which is too many for one request. Nothing was changed. {instead}",
        messages.ERROR,
    )
