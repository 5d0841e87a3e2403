"""Recoveries: queue for a subscription what it wants and hasn't received."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Collection
from typing import Literal

from django.db import transaction
from django.db.models import Func
from django.db.models.functions import Now
from psycopg.rows import scalar_row

from core.db import server_cursor
from core.ids import derive_id
from events.models import ERASED, Event, EventStatus
from webhooks.models import BulkRun, Cause, Delivery, DeliveryStatus, DestinationKind, Subscription
from webhooks.queues import lock_queues, mark_due
from webhooks.routing.fan_out import FAN_OUT_LOCK
from webhooks.routing.insert import NewDeliveries
from webhooks.routing.selection import wanted_events
from webhooks.upkeep import bulk_runs
from webhooks.upkeep.bulk_runs import CHUNK

# About how long a round of the fan-out takes, and so how soon a run that waits for one looks again.
ROUND_SECONDS = 0.02


def start(
    subscription: Subscription, since: datetime.datetime, actor: str = "", *, undelivered: bool = False
) -> BulkRun:
    """Begin to queue for `subscription` every event since `since` that it wants and hasn't received.

    undelivered: only those that another subscription hasn't received either, or that no other subscription wanted.

    A subscription has at most one recovery under way.  If it has one, that is returned, and starts over from `since` if
    it began later.  An event that is visited twice isn't queued twice.
    """
    with transaction.atomic():
        # Two requests at once must not begin two.
        Subscription.objects.select_for_update(no_key=True).filter(pk=subscription.pk).first()
        run = (
            BulkRun.objects.select_for_update()
            .filter(subscription=subscription, kind=BulkRun.Kind.RECOVER, state=BulkRun.State.RUNNING)
            .first()
        )
        if run is None:
            run = BulkRun.objects.create(
                kind=BulkRun.Kind.RECOVER,
                subscription=subscription,
                organization_id=subscription.organization_id,
                filters={"since": since.isoformat()} | ({"undelivered": True} if undelivered else {}),
                actor=actor,
                in_background=True,
            )
        elif since < (running_since := datetime.datetime.fromisoformat(run.filters["since"])) or (
            run.filters.get("undelivered") and not undelivered
        ):
            run.filters = {"since": min(since, running_since).isoformat()}
            run.cursor_at = run.cursor_id = None
            run.visited, run.total = 0, None
            run.save(update_fields=["filters", "cursor_at", "cursor_id", "visited", "total"])
    run.refresh_from_db()
    return run


def advance(run_id: uuid.UUID, rows: int = CHUNK) -> BulkRun | None:
    """Visit the next `rows` events and return the run's state; None if another process is doing so."""
    return bulk_runs.advance(run_id, _step, rows)


def _step(run: BulkRun, rows: int) -> None:
    subscription = run.subscription
    if subscription is None or subscription.deleted_at is not None:
        bulk_runs.finish(run)
        return
    if run.cursor_at is None and not _may_begin(run):
        time.sleep(ROUND_SECONDS)
        return
    events = Event.objects.filter(
        organization_id=subscription.organization_id,
        created_at__gte=run.filters["since"],
        status=EventStatus.PROCESSED,
    )
    seen = list(bulk_runs.from_place(run, events).only("id", "created_at", "type", "channels")[:rows])
    wanted = wanted_events(subscription, seen)
    if run.filters.get("undelivered"):
        wanted = _undelivered(wanted, subscription)
    # Locked, because retention may be about to delete them: no delivery must outlive its event.
    locked = Event.objects.select_for_update(no_key=True).filter(id__in=wanted).exclude(data=ERASED).order_by("id")
    wanted = list(locked.values_list("id", flat=True))
    ids = [derive_id(event_id, subscription.pk) for event_id in wanted]
    existing = set(Delivery.objects.filter(id__in=ids).values_list("event_id", flat=True))
    queued = _requeue_failed(subscription, existing)
    queued += _add_deliveries(subscription, [event_id for event_id in wanted if event_id not in existing])
    run.queued += queued
    if not subscription.is_active:
        run.held += queued
    bulk_runs.move_on(run, seen, rows)


# SQL, because `pg_locks` is a catalog.  The transactions of the fan-outs that are processing events
# (`routing.fan_out`).
_ROUNDS = f"""
SELECT DISTINCT virtualtransaction FROM pg_locks
WHERE locktype = 'advisory' AND classid = {FAN_OUT_LOCK} AND objsubid = 2 AND granted AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""  # noqa: S608 - a constant of ours


def _may_begin(run: BulkRun) -> bool:
    """Return whether every fan-out round is over that was under way at the first look.

    Such a round may not see the subscription yet, and its events count as processed only when it commits.  A later
    round does see the subscription.  So once these rounds are over, every event without a delivery is one for the run.
    """
    with server_cursor(scalar_row) as cursor:
        rounds = cursor.execute(_ROUNDS).fetchall()
    if "rounds" in run.filters:
        left = [one for one in run.filters.pop("rounds") if one in rounds]
    else:
        left = rounds
        BulkRun.objects.filter(pk=run.pk).update(before=Func(function="clock_timestamp"))
        run.refresh_from_db(fields=["before"])
    if left:
        run.filters["rounds"] = left
    BulkRun.objects.filter(pk=run.pk).update(filters=run.filters)
    return not left


# By two indexes in one statement: a delivery is always in one of them.  SQL, because both parts take the ids as one
# array.
_FIND_STATUSES = """
SELECT event_id, status FROM webhooks_delivery
WHERE event_id = ANY(%(events)s::uuid[]) AND subscription_id <> %(subscription)s
  AND status IN ('pending', 'delivered', 'failed', 'held', 'cancelled')
UNION ALL
SELECT event_id, status FROM webhooks_delivery
WHERE event_id = ANY(%(events)s::uuid[]) AND subscription_id <> %(subscription)s AND status = 'delivering'
"""


def _undelivered(event_ids: list[uuid.UUID], subscription: Subscription) -> list[uuid.UUID]:
    """Return those of the events that no other subscription has received, or that one still has to receive."""
    received, missing = set(), set()
    with server_cursor() as cursor:
        parameters = {"events": event_ids, "subscription": subscription.pk}
        for event_id, status in cursor.execute(_FIND_STATUSES, parameters).fetchall():
            if status == DeliveryStatus.DELIVERED:
                received.add(event_id)
            elif status != DeliveryStatus.CANCELLED:
                missing.add(event_id)
    return [event_id for event_id in event_ids if event_id not in received or event_id in missing]


def _requeue_failed(subscription: Subscription, event_ids: Collection[uuid.UUID]) -> int:
    """Give the failed deliveries of these events a fresh schedule; held ones for a disabled subscription."""
    if not event_ids:
        return 0
    queue = lock_queues([subscription.pk])[subscription.pk]
    ids = [derive_id(event_id, subscription.pk) for event_id in event_ids]
    failed = Delivery.objects.filter(id__in=ids, status=DeliveryStatus.FAILED)
    changed = failed.update(
        status=DeliveryStatus.PENDING if queue.accepts_deliveries else DeliveryStatus.HELD,
        next_attempt_at=Now(),
        cause=Cause.REPLAY,
        completed_at=None,
        attempts_used=0,
    )
    if changed:
        mark_due([subscription.pk])
    return changed


def _add_deliveries(subscription: Subscription, event_ids: list[uuid.UUID]) -> int:
    """Make deliveries of events that were fanned out before the subscription wanted them."""
    if not event_ids:
        return 0
    deliveries = NewDeliveries()
    status: Literal[DeliveryStatus.PENDING, DeliveryStatus.HELD] = (
        DeliveryStatus.PENDING if subscription.is_active else DeliveryStatus.HELD
    )
    types: dict[uuid.UUID, str] = {}
    if subscription.kind == DestinationKind.INBOX:
        types = dict(Event.objects.filter(id__in=event_ids).values_list("pk", "type"))
    keyed = {}
    if subscription.ordered:
        rows = Event.objects.filter(id__in=event_ids, ordering_key__isnull=False)
        keyed = {pk: (key, at) for pk, key, at in rows.values_list("pk", "ordering_key", "created_at")}
    for event_id in event_ids:
        if event_id in keyed:
            key, at = keyed[event_id]
            deliveries.add_ordered(subscription.organization_id, event_id, subscription.pk, status, str(key), at)
            continue
        deliveries.add(
            subscription.organization_id, event_id, [subscription.pk], status, inbox_type=types.get(event_id)
        )
    with server_cursor() as inserting, server_cursor() as ordering, server_cursor() as other:
        deliveries.insert(0.0, inserting, ordering)
        added = deliveries.inserted(inserting, ordering)
        deliveries.mark_queues(0.0, other)
    return added
