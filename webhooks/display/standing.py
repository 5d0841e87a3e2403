"""How a subscription stands: what waits for it, and its most recent attempts."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass

from django.db.models import QuerySet
from psycopg.rows import class_row

from core.db import server_cursor
from core.query import newest
from webhooks.destinations.outcome import Failure
from webhooks.display.formatting import format_duration, format_time
from webhooks.models import Delivery, DeliveryAttempt, DeliveryStatus, OrderedOnFailure
from webhooks.ordering_keys import PARKED_FROM
from webhooks.ordering_keys import count_waiting as count_later
from webhooks.states import NOT_LEASED

# Recent attempts are those of so many of the newest deliveries, and of those that wait for their next attempt longest.
NEWEST_DELIVERIES = 500
COUNT_TO = 10_000
MOST_HELD_UP = 1000

# One pass over the index of what is pending, to a LIMIT; the ORM would make one query for each of the numbers.
_COUNT_WAITING = f"""
SELECT count(*) FILTER (WHERE is_free) AS pending,
       count(*) FILTER (WHERE next_attempt_at <= statement_timestamp()) AS due,
       count(*) FILTER (WHERE is_free AND last_error <> '') AS retrying,
       count(*) FILTER (WHERE NOT is_free) AS fetched,
       (SELECT count(*) FROM (SELECT 1 FROM webhooks_delivery WHERE subscription_id = %(id)s AND status = 'held'
                              LIMIT %(most)s) AS held) AS held
FROM (
    SELECT next_attempt_at, last_error, {NOT_LEASED} AS is_free FROM webhooks_delivery
    WHERE subscription_id = %(id)s AND status = 'pending'
    ORDER BY next_attempt_at LIMIT %(most)s
) AS pending
"""  # noqa: S608 - a constant of ours


@dataclass(frozen=True, slots=True)
class _Counts:
    """The row of _COUNT_WAITING.  pending: also what is retrying, but not what is fetched."""

    pending: int
    due: int
    retrying: int
    fetched: int
    held: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many deliveries wait for a subscription, as text: counting stops at COUNT_TO, which a plus says."""

    pending: str
    retrying: str
    due: str
    fetched: str
    held: str


def count_waiting(subscription_id: uuid.UUID) -> Waiting:
    """Return what waits for the subscription.  pending: for its first attempt.  due: could be sent now."""
    with server_cursor(class_row(_Counts)) as cursor:
        (counts,) = cursor.execute(_COUNT_WAITING, {"id": subscription_id, "most": COUNT_TO}).fetchall()
    # Counting stops at so many of both together.
    more = "+" if counts.pending + counts.fetched >= COUNT_TO else ""
    return Waiting(
        pending=f"{counts.pending - counts.retrying:,}{more}",
        retrying=f"{counts.retrying:,}{more}",
        due=f"{counts.due:,}{more}",
        fetched=f"{counts.fetched:,}{more}",
        held=f"{counts.held:,}{'+' if counts.held >= COUNT_TO else ''}",
    )


def count_held_up(delivery: Delivery) -> int:
    """Return how many later deliveries of its ordering key wait for this one, MOST_HELD_UP if there are more."""
    if delivery.ordering_key is None or delivery.status in {DeliveryStatus.DELIVERED, DeliveryStatus.CANCELLED}:
        return 0
    blocks = delivery.subscription.ordered_on_failure == OrderedOnFailure.BLOCK
    if delivery.status == DeliveryStatus.FAILED and (not blocks or delivery.last_error == Failure.PAYLOAD_ERASED):
        return 0
    return count_later(delivery, MOST_HELD_UP)


def when(moment: datetime.datetime | None, now: datetime.datetime) -> str:
    """Return a time, and how far away it is."""
    if moment is None:
        return "-"
    return f"{format_time(moment)} ({distance(moment, now)})"


def distance(moment: datetime.datetime, now: datetime.datetime) -> str:
    """Return how far away a time is, such as `5 min ago`."""
    seconds = (now - moment).total_seconds()
    length = format_duration(max(1, round(abs(seconds))) * 1000)
    return f"{length} ago" if seconds >= 0 else f"in {length}"


def recent_attempts(
    rows: QuerySet[Delivery], most: int, waiting: QuerySet[Delivery] | None = None
) -> list[DeliveryAttempt]:
    """Return the newest attempts of these deliveries, with delivery and event, and without their exchanges.

    waiting: those of them that wait for another attempt, in order, if they aren't one subscription's.

    There is no index of attempts but by delivery: they are found by the newest deliveries and by those that wait.
    """
    recent = newest(rows.only("id", "created_at", "attempt_count"), NEWEST_DELIVERIES)
    ids = [row.pk for row in recent if row.attempt_count][: 2 * most]
    if waiting is None:
        planned = rows.filter(status=DeliveryStatus.PENDING, next_attempt_at__lt=PARKED_FROM)
        waiting = planned.order_by("-next_attempt_at")
    ids += [pk for pk, attempts in waiting.values_list("pk", "attempt_count")[:most] if attempts]
    attempts = DeliveryAttempt.objects.filter(delivery_id__in=set(ids)).select_related("delivery__event")
    return list(attempts.defer("sealed_exchange", "delivery__event__data").order_by("-started_at")[:most])
