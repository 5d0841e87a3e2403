"""What the actions on lists have in common: bounds, steps, and messages about what was done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.contrib import messages
from django.contrib.admin.utils import model_ngettext
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from console.model_admin import BoundedAdmin

# The most rows that an action takes, even if all matching rows are selected.
ACTION_BOUND = 10_000
# How many rows are changed in one transaction.
ACTION_CHUNK = 500


class TooMany(Exception):
    """An action was asked for on more than ACTION_BOUND rows."""


def selected_ids(queryset: QuerySet[Any]) -> list[Any]:
    """Return the ids of the selected rows.  Raises TooMany if there are more than ACTION_BOUND."""
    ids = list(queryset.values_list("pk", flat=True)[: ACTION_BOUND + 1])
    if len(ids) > ACTION_BOUND:
        raise TooMany
    return ids


def chunks(ids: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield `ids` in pieces of ACTION_CHUNK."""
    for start in range(0, len(ids), ACTION_CHUNK):
        yield list(ids[start : start + ACTION_CHUNK])


def report(
    model_admin: BoundedAdmin,
    request: HttpRequest,
    done: str,
    changed: int,
    skipped: dict[str, int],
    model: type[Model] | None = None,
) -> None:
    """Say how many rows changed, and why others were skipped: "2 deliveries held. 1 skipped: 1 being sent right now."

    done: what happened to them, such as "held".  skipped: how many for which reason.  model: what was changed, if not
    the list's own rows.
    """
    rows = model_ngettext((model or model_admin.model)._meta, changed)
    parts = [f"{changed} {rows} {done}."]
    reasons = {reason: count for reason, count in skipped.items() if count > 0}
    if reasons:
        counted = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        parts.append(f"{sum(reasons.values())} skipped: {counted}.")
    model_admin.message_user(request, " ".join(parts), messages.SUCCESS if changed else messages.WARNING)


def refuse_too_many(model_admin: BoundedAdmin, request: HttpRequest, instead: str) -> None:
    """Say that an action was asked for on too many rows.  instead: what to do, as a sentence."""
    model_admin.message_user(
        request,
        f"More than {ACTION_BOUND:,} rows are selected, which is too many for one action. Nothing was changed. "
        f"{instead}",
        messages.ERROR,
    )
