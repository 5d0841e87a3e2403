"""Replays: sending settled deliveries again, with a fresh schedule."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from typing import Any

from django.db.models import Exists, OuterRef, QuerySet

from webhooks import delivery_actions
from webhooks.delivery_actions import DeliveryAction
from webhooks.delivery_filters import matching_deliveries
from webhooks.models import BulkRun, Delivery, Subscription
from webhooks.upkeep import bulk_runs
from webhooks.upkeep.bulk_runs import CHUNK


def replayable(filters: Mapping[str, Any]) -> QuerySet[Delivery]:
    """Return the deliveries that a replay would send: settled ones whose subscription is active."""
    active = Subscription.objects.filter(id=OuterRef("subscription_id"), is_active=True, deleted_at=None)
    return matching_deliveries(filters).filter(Exists(active), status__in=DeliveryAction.REPLAY.states)


def start(filters: Mapping[str, Any], organization_id: uuid.UUID | None = None) -> BulkRun:
    """Begin a replay of what `filters` match now.  Nothing is sent until `advance`."""
    plain = {name: value if isinstance(value, str) else _as_text(value) for name, value in filters.items()}
    run = BulkRun.objects.create(kind=BulkRun.Kind.REPLAY, filters=plain, organization_id=organization_id)
    run.refresh_from_db()
    return run


def advance(run_id: uuid.UUID, rows: int = CHUNK) -> BulkRun | None:
    """Replay the next `rows` deliveries and return where the run stands; None if another process is at it."""
    return bulk_runs.advance(run_id, _step, rows)


def remaining(run: BulkRun) -> int:
    """Return how many deliveries the run has still to look at.  This counts them: for a person who waits."""
    return bulk_runs.from_place(run, replayable(run.filters)).count()


def _step(run: BulkRun, rows: int) -> None:
    seen = list(bulk_runs.from_place(run, replayable(run.filters)).values_list("id", "created_at")[:rows])
    run.queued += delivery_actions.apply(DeliveryAction.REPLAY, [row[0] for row in seen], announce=False)
    bulk_runs.move_on(run, seen, rows)


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)
