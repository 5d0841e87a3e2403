"""What the actions on deliveries share: what a list's filters mean to a run, and holding, resuming, and skipping."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from console.actions import TooMany, chunks, refuse_too_many, report, selected_ids
from console.confirmation import Question, ReasonForm, answer, question_page, reason_of
from console.time_ranges import FAILED_SINCE, SPANS
from core.ids import parse_id
from core.wakeups import WEBHOOKS, wake
from orgs import audit
from webhooks import delivery_actions
from webhooks.delivery_actions import DeliveryAction
from webhooks.delivery_filters import is_outcome
from webhooks.models import Delivery
from webhooks.states import STATE_COLUMNS, DeliveryState, state_of
from webhooks.upkeep import replay

if TYPE_CHECKING:
    from console.model_admin import BoundedAdmin

USE_COMMAND = (
    "Narrow the list with filters, or use `manage.py replay_deliveries`, which is paced and can be resumed. It takes "
    "--org, --subscription, --event, --status and --since."
)
NOT_BY_FILTER = (
    "All matching rows can be chosen by state, cause, creation time, organization, subscription and event. Take away "
    "the list's other filters and the search, or choose rows one by one. Nothing was changed."
)

_ROWS = {"organization": "org", "subscription": "subscription", "event": "event"}
# Parameters of a list that choose no rows.
_HOW_SHOWN = {"p", "o", "e"}


def list_filters(request: HttpRequest) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return what the list's filters choose, as a run's filters and in the list's own words.

    None if a run can't choose by one of them.
    """
    given = {name: str(value) for name, value in request.GET.items() if name not in _HOW_SHOWN}
    filters: dict[str, Any] = {}
    now = timezone.now()
    for name, value in given.items():
        if name in _ROWS:
            row_id = parse_id(value)
            if row_id is None:
                return None
            filters[_ROWS[name]] = row_id
        elif name == "created" and value in SPANS:
            filters["since"] = now - SPANS[value][1]
        elif name == "status" and value in FAILED_SINCE:
            filters.update(statuses=[DeliveryState.FAILED.value], failed_since=now - FAILED_SINCE[value].age)
        elif name == "outcome" and is_outcome(value):
            filters["outcome"] = value
        elif name == "status" and value == replay.DELIVERED:
            filters["statuses"] = []  # only with the words that include them
        elif name == "status" and value in DeliveryState.values:
            filters["statuses"] = [value] if value in replay.NEEDS_IT else []
        else:
            return None
    return filters, given


# Of the actions that aren't runs: what they ask first, with what follows, and what they report.
_QUESTIONS = {
    DeliveryAction.HOLD: ("Hold", "Nothing of {what} is sent until somebody resumes {them}."),
    DeliveryAction.SKIP: (
        "Skip",
        "{What} will be cancelled and not sent, and what waits for {them} in the order of {their} key is sent.",
    ),
}
_DONE = {DeliveryAction.HOLD: "held", DeliveryAction.RESUME: "resumed", DeliveryAction.SKIP: "skipped"}


def act(
    model_admin: BoundedAdmin, request: HttpRequest, queryset: QuerySet[Delivery], action: DeliveryAction
) -> HttpResponse | None:
    """Hold, resume, or skip the chosen deliveries: leave out those that it can't be done to, act in steps, and report.

    All but resuming ask for a reason first.
    """
    try:
        chosen: list[uuid.UUID] = selected_ids(queryset)
    except TooMany:
        refuse_too_many(model_admin, request, "Narrow the list with filters.")
        return None
    rows = Delivery.objects.filter(pk__in=chosen).select_related("subscription")
    columns = ("organization_id", "ordering_key", "subscription__is_active", "subscription__deleted_at", *STATE_COLUMNS)
    skipped: Counter[str] = Counter()
    able: list[uuid.UUID] = []
    organizations: dict[uuid.UUID, list[uuid.UUID]] = defaultdict(list)
    for row in rows.only(*columns):
        why_not = _why_not(action, row)
        if why_not is None:
            able.append(row.pk)
            organizations[row.organization_id].append(row.pk)
        else:
            skipped[why_not] += 1
    reason = ""
    if action in _QUESTIONS and able:
        form = answer(request, ReasonForm)
        if not form.is_valid():
            what = f"{len(able):,} {'delivery' if len(able) == 1 else 'deliveries'}"
            verb, consequence = _QUESTIONS[action]
            them, their = ("it", "its") if len(able) == 1 else ("them", "their")
            paragraphs = [consequence.format(what=what, What=what, them=them, their=their)]
            paragraphs += [f"{count:,} selected will be left alone: {why}." for why, count in skipped.items()]
            return question_page(model_admin, request, form, Question(f"{verb} {what}?", f"{verb} {what}", paragraphs))
        reason = reason_of(form)
    changed = 0
    for number, part in enumerate(chunks(able)):
        with transaction.atomic():
            changed += delivery_actions.apply(action, part, announce=False)
            if number == 0:  # one entry for the act, with what was chosen
                _audit(request, action, organizations, reason)
    if changed and action is not DeliveryAction.HOLD:
        wake(WEBHOOKS)
    # A worker may have claimed or completed one between the look and the change.
    skipped["changed meanwhile"] += len(chosen) - changed - sum(skipped.values())
    report(model_admin, request, _DONE[action], changed, dict(skipped))
    return None


def _audit(
    request: HttpRequest, action: DeliveryAction, organizations: Mapping[uuid.UUID, Sequence[uuid.UUID]], reason: str
) -> None:
    """Add an audit entry for each organization, with its deliveries that were chosen."""
    for organization_id, own in organizations.items():
        audit.record_for_user(
            request, f"delivery.{action.verb}", organization_id, own[0] if len(own) == 1 else "",
            {"count": len(own), "filters": dict(request.GET.items())}, reason=reason,
            name=f"{len(own)} {'delivery' if len(own) == 1 else 'deliveries'}", targets=own,
        )  # fmt: skip


def _why_not(action: DeliveryAction, row: Delivery) -> str | None:
    """Return why the action skips a delivery, or None if it doesn't."""
    state = state_of(row)
    if state not in action.states:
        return {
            "delivering": "being sent right now, or fetched by a consumer",
            "cancelled": "cancelled",
        }.get(state, f"{state} (can't {action.verb})")
    if row.subscription.deleted_at is not None:
        return "for a deleted subscription"
    if not row.subscription.is_active and action is DeliveryAction.RESUME:
        return "for a disabled subscription (enable it first)"
    if action is DeliveryAction.SKIP and row.ordering_key is None:
        return "without an ordering key"
    return None
