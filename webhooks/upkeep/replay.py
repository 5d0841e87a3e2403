"""Retries and replays of many deliveries: one more attempt, or the whole schedule again, for all that match.

By default, a run takes deliveries that failed and those that are retrying.  Those that were delivered are sent again
only if that is said explicitly.
"""

from __future__ import annotations

import datetime
import hashlib
import heapq
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import Q, QuerySet

from webhooks.delivery_actions import DeliveryAction, apply_in_run
from webhooks.delivery_filters import matching_deliveries
from webhooks.models import BulkRun, Delivery, Subscription
from webhooks.states import DeliveryState
from webhooks.upkeep import bulk_runs
from webhooks.upkeep.bulk_runs import CHUNK

NEEDS_IT = (DeliveryState.FAILED.value, DeliveryState.RETRYING.value)
DELIVERED = DeliveryState.DELIVERED.value
# The states of deliveries that a run can take.
STATES = (*NEEDS_IT, DELIVERED)

_ACTIONS = {BulkRun.Kind.RETRY.value: DeliveryAction.RETRY, BulkRun.Kind.REPLAY.value: DeliveryAction.REPLAY}


class _Row(NamedTuple):
    """A delivery that the run has seen."""

    id: uuid.UUID
    created_at: datetime.datetime


def states_in(filters: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the states that the run takes, as its filters name them; by default failed and retrying."""
    if "status" in filters:  # one state, as a list's filter has it
        return (filters["status"],)
    return tuple(filters.get("statuses", NEEDS_IT))


def matching(filters: Mapping[str, Any], state: str) -> QuerySet[Delivery]:
    """Return the deliveries in a state that the other filters describe.

    One query for each state, with the organization if there is one: then an index has just these rows, in the order of
    the run.
    """
    others = {name: value for name, value in filters.items() if name != "statuses"}
    if "subscription" in others and "org" not in others:
        of = Subscription.objects.filter(pk=others["subscription"]).values_list("organization_id", flat=True).first()
        if of is not None:
            others["org"] = of
    return matching_deliveries({**others, "status": state})


def start(
    filters: Mapping[str, Any],
    organization_id: uuid.UUID | None = None,
    *,
    kind: BulkRun.Kind = BulkRun.Kind.REPLAY,
    actor: str = "",
    total: int | None = None,
) -> BulkRun:
    """Begin a run over what `filters` match now.  Nothing is sent until the caller calls `advance`.

    total: how many they are, if that was counted.
    """
    run = BulkRun.objects.create(
        kind=kind, filters=_plain(filters), organization_id=organization_id, actor=actor, total=total,
        subscription=_subscription(filters.get("subscription")),
    )  # fmt: skip
    run.refresh_from_db()
    return run


def start_in_background(
    filters: Mapping[str, Any],
    organization_id: uuid.UUID | None,
    *,
    kind: BulkRun.Kind,
    actor: str,
    total: int | None,
    asked: object,
    seen_at: datetime.datetime,
) -> tuple[BulkRun, bool]:
    """Begin a run that workers advance, in the caller's transaction; return it, and whether it is new.

    Two who ask for the same get one run: the second one gets the first one's if that is under way, or began after
    `seen_at`, when the second one looked at what would be done.
    asked: what was asked for, the same for both, as JSON: the filters, with a span of time as a word.
    """
    fingerprint = hashlib.sha256(json.dumps([kind.value, asked], sort_keys=True, default=str).encode()).hexdigest()
    with transaction.atomic():
        with connection.cursor() as cursor:  # SQL, because the ORM has no advisory locks
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [fingerprint])
        same = BulkRun.objects.filter(fingerprint=fingerprint)
        found = same.filter(Q(state=BulkRun.State.RUNNING) | Q(created_at__gte=seen_at)).order_by("-created_at").first()
        if found is not None:
            return found, False
        run = start(filters, organization_id, kind=kind, actor=actor, total=total)
        BulkRun.objects.filter(pk=run.pk).update(fingerprint=fingerprint, in_background=True)
        run.refresh_from_db()
        return run, True


def advance(run_id: uuid.UUID, rows: int = CHUNK) -> BulkRun | None:
    """Process the next `rows` deliveries and return the run's state; None if another process is doing so."""
    return bulk_runs.advance(run_id, _step, rows)


def _step(run: BulkRun, rows: int) -> None:
    states = states_in(run.filters)
    seen = _next_rows(run, states, rows)
    # Whoever names deliveries one by one wants to see the result now; a filter may match thousands.
    probe = "deliveries" in run.filters and run.visited == 0
    applied = apply_in_run(_ACTIONS[run.kind], [row.id for row in seen], states, probe=probe)
    run.queued += applied.changed
    run.held += applied.held
    bulk_runs.move_on(run, seen, rows)


def _next_rows(run: BulkRun, states: Sequence[str], rows: int) -> list[_Row]:
    """Return the ids and times of the next rows, over all states, in the order of the run."""
    parts: list[list[_Row]] = [
        [
            _Row(*row)
            for row in bulk_runs.from_place(run, matching(run.filters, state)).values_list("id", "created_at")[:rows]
        ]
        for state in states
    ]
    return list(heapq.merge(*parts, key=lambda row: (row.created_at, row.id)))[:rows]


def _subscription(named: Any) -> Subscription | None:
    return Subscription.objects.filter(pk=named).first() if named is not None else None


def _plain(filters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [str(one) for one in value] if isinstance(value, list | tuple) else _as_text(value)
        for name, value in filters.items()
    }


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)
