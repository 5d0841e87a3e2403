"""Replays and recoveries of many deliveries, chunk by chunk, with their progress in the database.

A run walks rows from the oldest to the newest that existed when it began and keeps its place, so that
it goes on after a crash, never takes a row twice, and holds one chunk in memory.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Mapping
from typing import Any

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from core.db import is_transient, server_cursor
from core.ids import new_ids
from core.wakeups import WEBHOOKS, wake
from events.models import Event, EventStatus
from webhooks import repair, sql
from webhooks.matching import Matcher, Wanting
from webhooks.models import BulkRun, Delivery, Subscription
from webhooks.repair import Repair

CHUNK = 500
RECOVERIES_AT_A_TIME = 20

log = structlog.get_logger()


def matching_deliveries(filters: Mapping[str, Any]) -> QuerySet[Delivery]:
    """Return the deliveries that `filters` describe: delivery, event, subscription, org, status, since, until."""
    columns = {
        "delivery": "id",
        "event": "event_id",
        "subscription": "subscription_id",
        "org": "organization_id",
        "status": "status",
        "since": "created_at__gte",
        "until": "created_at__lt",
    }
    return Delivery.objects.filter(**{columns[name]: value for name, value in filters.items()})


def replayable(filters: Mapping[str, Any]) -> QuerySet[Delivery]:
    """Return those that a replay would send: settled ones whose subscription takes deliveries."""
    able = Subscription.objects.filter(id=OuterRef("subscription_id"), is_active=True, deleted_at=None)
    return matching_deliveries(filters).filter(Exists(able), status__in=Repair.REPLAY.states)


def start_replay(filters: Mapping[str, Any], organization_id: uuid.UUID | None = None) -> BulkRun:
    """Begin a replay of what `filters` match now.  Nothing is sent until `advance`."""
    plain = {name: value if isinstance(value, str) else _as_text(value) for name, value in filters.items()}
    run = BulkRun.objects.create(kind=BulkRun.Kind.REPLAY, filters=plain, organization_id=organization_id)
    run.refresh_from_db()
    return run


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)


def remaining(run: BulkRun) -> int:
    """Return how many deliveries a replay has still to look at.  Counts; for a person who waits."""
    return _from_cursor(run, replayable(run.filters)).count()


def start_recovery(subscription: Subscription, since: datetime.datetime) -> BulkRun:
    """Begin to queue for `subscription` every event since `since` that it wants and hasn't received.

    A subscription has one recovery under way at the most: that one is returned, and starts over from
    `since` if it began later.  Looking at an event twice queues nothing twice.
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
                filters={"since": since.isoformat()},
            )
        elif since < datetime.datetime.fromisoformat(run.filters["since"]):
            run.filters = {"since": since.isoformat()}
            run.cursor_at = run.cursor_id = None
            run.save(update_fields=["filters", "cursor_at", "cursor_id"])
    run.refresh_from_db()
    return run


def advance(run_id: uuid.UUID, rows: int = CHUNK) -> BulkRun | None:
    """Do the next `rows` rows of a run and return where it stands; None when another process does it."""
    with transaction.atomic():
        run = BulkRun.objects.select_for_update(skip_locked=True).filter(pk=run_id).first()
        if run is None:
            return None
        if run.state == BulkRun.State.RUNNING:
            step = _replay_chunk if run.kind == BulkRun.Kind.REPLAY else _recover_chunk
            step(run, rows)
            run.save(update_fields=["queued", "cursor_at", "cursor_id", "state", "finished_at"])
            run.refresh_from_db()
    wake(WEBHOOKS)
    return run


def _from_cursor(run: BulkRun, rows: QuerySet[Any]) -> QuerySet[Any]:
    rows = rows.filter(created_at__lte=run.before)
    if run.cursor_at is not None:
        rows = rows.filter(created_at__gte=run.cursor_at).filter(
            Q(created_at__gt=run.cursor_at) | Q(id__gt=run.cursor_id)
        )
    return rows.order_by("created_at", "id")


def _move_on(run: BulkRun, seen: list[tuple[Any, ...]], rows: int) -> None:
    """Keep the place behind the last row seen; a short chunk was the last one."""
    if seen:
        run.cursor_id, run.cursor_at = seen[-1][0], seen[-1][1]
    if len(seen) < rows:
        run.state = BulkRun.State.DONE
        run.finished_at = Now()


def _replay_chunk(run: BulkRun, rows: int) -> None:
    seen = list(_from_cursor(run, replayable(run.filters)).values_list("id", "created_at")[:rows])
    run.queued += repair.apply(Repair.REPLAY, [row[0] for row in seen], announce=False)
    _move_on(run, seen, rows)


def _recover_chunk(run: BulkRun, rows: int) -> None:
    subscription = run.subscription
    if subscription is None or subscription.deleted_at is not None:
        run.state = BulkRun.State.DONE
        run.finished_at = Now()
        return
    events = Event.objects.filter(
        organization_id=subscription.organization_id,
        created_at__gte=run.filters["since"],
        status=EventStatus.PROCESSED,
    )
    seen = list(_from_cursor(run, events).values_list("id", "created_at", "type")[:rows])
    matcher = Matcher([Wanting(subscription.pk, tuple(subscription.event_types), subscription.is_active)])
    wanted = [row[0] for row in seen if matcher.match(row[2])]
    # Locked, because retention may be about to delete them: no delivery must outlive its event.
    locked = Event.objects.select_for_update(no_key=True).filter(id__in=wanted).order_by("id")
    wanted = list(locked.values_list("id", flat=True))
    existing = set(
        Delivery.objects.filter(event_id__in=wanted, subscription=subscription).values_list("event_id", flat=True)
    )
    run.queued += _requeue_failed(subscription, list(existing))
    run.queued += _add_deliveries(subscription, [event_id for event_id in wanted if event_id not in existing])
    _move_on(run, seen, rows)


def _requeue_failed(subscription: Subscription, event_ids: list[uuid.UUID]) -> int:
    """Give the failed deliveries of these events a fresh schedule."""
    if not event_ids:
        return 0
    with server_cursor() as cursor:
        cursor.execute(sql.LOCK_LANES, {"ids": [subscription.pk], "most": 1})
        changed = cursor.execute(sql.REQUEUE_FAILED, {"events": event_ids, "subscription": subscription.pk}).rowcount
        if changed:
            cursor.execute(sql.ANNOUNCE_DUE, {"ids": [subscription.pk], "delay": 0})
    return changed


def _add_deliveries(subscription: Subscription, event_ids: list[uuid.UUID]) -> int:
    """Make deliveries of events that were fanned out before the subscription wanted them."""
    if not event_ids:
        return 0
    with server_cursor() as cursor:
        cursor.execute(
            sql.INSERT_DELIVERIES,
            {
                "ids": new_ids(len(event_ids)),
                "organizations": [subscription.organization_id] * len(event_ids),
                "events": event_ids,
                "subscriptions": [subscription.pk] * len(event_ids),
                "statuses": ["pending" if subscription.is_active else "held"] * len(event_ids),
                "delay": 0,
            },
        )
        added = cursor.rowcount
        if subscription.is_active:
            cursor.execute(sql.ANNOUNCE_DUE, {"ids": [subscription.pk], "delay": 0})
        else:
            cursor.execute(sql.ANNOUNCE_HELD, ([subscription.pk],))
    return added


def advance_recoveries(seconds: float) -> None:
    """Move on with the recoveries that are under way, taking turns, for about `seconds`; the sweep calls this.

    One that raises is left where it is, and holds up no other.
    """
    ends = time.monotonic() + seconds
    running = BulkRun.objects.filter(state=BulkRun.State.RUNNING, kind=BulkRun.Kind.RECOVER)
    # In no order: everyone's turn comes, however many there are.
    waiting = list(running.order_by("?").values_list("id", flat=True)[:RECOVERIES_AT_A_TIME])
    while waiting:
        run_id = waiting.pop(0)
        try:
            run = advance(run_id)
        except Exception as error:
            if is_transient(error):
                raise
            log.error("recovery_failed", run=str(run_id), error=repr(error)[:300])
            continue
        if run is not None and run.state == BulkRun.State.RUNNING:
            waiting.append(run_id)
        if time.monotonic() >= ends:
            return
