"""Ordering keys: within one subscription and key, deliveries are made one at a time, in the order of their events.

A delivery with a key may be claimed if no earlier one of its key is unfinished.  That is decided where deliveries are
claimed, under the lock of the queue, so it is true whatever else happens to them.  What has to wait is *parked*: its
next attempt is set far in the future, so that claims don't look at it again.  When a delivery of a key is finished, the
next one becomes due.  If that is missed, the sweep finds it (`repair_order`).
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Sequence
from typing import Protocol

import psycopg
import structlog
from psycopg.rows import scalar_row

from core.arrays import plain_array, text_array
from core.db import in_transaction, server_cursor
from webhooks.destinations.outcome import Failure
from webhooks.models import SubscriptionQueue
from webhooks.queues import lock_queues, mark_due

log = structlog.get_logger()

# The next attempt of what is parked.  It is compared with a bound, in case a time zone or a test moves it.
PARKED_UNTIL = datetime.datetime(3000, 1, 1, tzinfo=datetime.UTC)
PARKED_FROM = datetime.datetime(2900, 1, 1, tzinfo=datetime.UTC)
UNFINISHED = "('pending', 'delivering', 'held')"

# How many due deliveries of a queue a claim checks for those that have to wait.
PARKED_AT_A_TIME = 1000
# How many keys of one subscription a statement looks at.
KEYS_AT_A_TIME = 1000

# All of this is SQL, because a place in the order is two columns that are compared together, and because the ORM has
# neither LATERAL joins nor recursion.

# The rule, for a delivery `d` and others `b` of its key.  Three kinds make it wait: an earlier one that is unfinished;
# any that is on its way, while somebody retries this one; and an earlier one that failed, if the subscription blocks on
# failures.  A failed one whose payload was erased blocks nothing: no retry helps.
_OF_ITS_KEY = "b.subscription_id = d.subscription_id AND b.ordering_key = d.ordering_key"
_IS_EARLIER = "(b.ordered_at, b.event_id) < (d.ordered_at, d.event_id)"
_UNFINISHED_ONE = f"{_OF_ITS_KEY} AND b.status IN {UNFINISHED}"
_ONE_ON_ITS_WAY = f"{_OF_ITS_KEY} AND b.status = 'delivering'"
_EARLIER_FAILED_ONE = (
    f"{_OF_ITS_KEY} AND b.status = 'failed' AND {_IS_EARLIER} AND b.last_error <> '{Failure.PAYLOAD_ERASED}'"
)
_THE_FIRST = "ORDER BY b.ordered_at, b.event_id LIMIT 1"

# Whether an earlier delivery of the key is unfinished; NULL if none is.  The first of a key is looked up by an index in
# its order; of an EXISTS, the planner may read all that wait, each time.
EARLIER_IS_UNFINISHED = f"""(
            SELECT {_IS_EARLIER} FROM webhooks_delivery b WHERE {_UNFINISHED_ONE} {_THE_FIRST}
        )"""  # noqa: S608 - a constant of ours

# Whether a delivery `d` of a queue `q` has to wait.
MUST_WAIT = f"""(
    d.ordering_key IS NOT NULL AND (
        {EARLIER_IS_UNFINISHED}
        OR EXISTS (SELECT 1 FROM webhooks_delivery b WHERE {_ONE_ON_ITS_WAY})
        OR q.blocks_on_failure AND EXISTS (SELECT 1 FROM webhooks_delivery b WHERE {_EARLIER_FAILED_ONE})
    )
)"""  # noqa: S608 - a constant of ours

# Of each queue, parks those of the next due deliveries that have to wait.
_PARK = f"""
UPDATE webhooks_delivery SET next_attempt_at = %(until)s
WHERE id = ANY (ARRAY (
    SELECT d.id FROM unnest(%(queues)s::uuid[], %(blocks)s::bool[]) AS q(subscription_id, blocks_on_failure)
    CROSS JOIN LATERAL (
        SELECT id, subscription_id, ordering_key, ordered_at, event_id FROM webhooks_delivery
        WHERE subscription_id = q.subscription_id AND status = 'pending' AND next_attempt_at <= statement_timestamp()
        ORDER BY next_attempt_at LIMIT {PARKED_AT_A_TIME}
    ) AS d
    WHERE {MUST_WAIT}
)) AND status = 'pending'
"""  # noqa: S608 - a constant of ours

# The first unfinished delivery of each key is due, if it was parked.
_UNPARK = f"""
UPDATE webhooks_delivery SET next_attempt_at = clock_timestamp()
WHERE id = ANY (ARRAY (
    SELECT first.id FROM unnest(%(queues)s::uuid[], %(keys)s::text[]) AS w(subscription_id, ordering_key)
    CROSS JOIN LATERAL (
        SELECT id, status, next_attempt_at FROM webhooks_delivery
        WHERE subscription_id = w.subscription_id AND ordering_key = w.ordering_key AND status IN {UNFINISHED}
        ORDER BY ordered_at, event_id LIMIT 1
    ) AS first
    WHERE first.status = 'pending' AND first.next_attempt_at > %(parked)s
)) AND status = 'pending'
RETURNING subscription_id
"""  # noqa: S608 - a constant of ours

# Jumps from key to key, so that the cost depends on how many keys wait, not on how many deliveries.
_WAITING_KEYS = f"""
WITH RECURSIVE waiting AS (
    (SELECT ordering_key, 1 AS number FROM webhooks_delivery
     WHERE subscription_id = %(queue)s AND ordering_key > %(after)s AND status IN {UNFINISHED}
     ORDER BY ordering_key LIMIT 1)
    UNION ALL
    (SELECT (SELECT d.ordering_key FROM webhooks_delivery d
             WHERE d.subscription_id = %(queue)s AND d.ordering_key > waiting.ordering_key AND d.status IN {UNFINISHED}
             ORDER BY d.ordering_key LIMIT 1), number + 1
     FROM waiting WHERE ordering_key IS NOT NULL AND number < {KEYS_AT_A_TIME})
)
SELECT ordering_key FROM waiting WHERE ordering_key IS NOT NULL
"""  # noqa: S608 - a constant of ours

# Parked deliveries that have nothing to wait for: the one before them was finished by hand, or given up.  One behind a
# failed delivery that blocks the key has to wait.
_FIND_FORGOTTEN = f"""
SELECT d.ordering_key FROM unnest(%(keys)s::text[]) AS w(ordering_key)
CROSS JOIN LATERAL (
    SELECT * FROM webhooks_delivery
    WHERE subscription_id = %(queue)s AND ordering_key = w.ordering_key AND status IN {UNFINISHED}
    ORDER BY ordered_at, event_id LIMIT 1
) AS d
CROSS JOIN (
    SELECT ordered_on_failure = 'block' AS blocks_on_failure FROM webhooks_subscription WHERE id = %(queue)s
) AS q
WHERE d.status = 'pending' AND d.next_attempt_at > %(parked)s AND NOT {MUST_WAIT}
"""  # noqa: S608 - a constant of ours


# Which delivery a delivery waits for: of each kind that MUST_WAIT looks for the first, and of these the first.
_BLOCKER = f"""
SELECT b.id FROM (
    SELECT %(subscription)s::uuid AS subscription_id, %(key)s::text AS ordering_key,
           %(ordered_at)s::timestamptz AS ordered_at, %(event)s::uuid AS event_id
) AS d
CROSS JOIN LATERAL (
    (SELECT b.id, b.ordered_at, b.event_id FROM webhooks_delivery b WHERE {_UNFINISHED_ONE} AND {_IS_EARLIER}
     {_THE_FIRST})
    UNION ALL
    (SELECT b.id, b.ordered_at, b.event_id FROM webhooks_delivery b WHERE {_ONE_ON_ITS_WAY} AND b.event_id <> d.event_id
     LIMIT 1)
    UNION ALL
    (SELECT b.id, b.ordered_at, b.event_id FROM webhooks_delivery b WHERE {_EARLIER_FAILED_ONE}
       AND (SELECT ordered_on_failure = 'block' FROM webhooks_subscription s WHERE s.id = d.subscription_id)
     {_THE_FIRST})
) AS b
{_THE_FIRST}
"""  # noqa: S608 - a constant of ours

# Those that wait for one of their key.
_COUNT_WAITING = f"""
SELECT count(*) FROM (
    SELECT FROM webhooks_delivery
    WHERE subscription_id = %(subscription)s AND ordering_key = %(key)s AND status IN {UNFINISHED}
      AND (ordered_at, event_id) > (%(ordered_at)s, %(event)s)
    LIMIT %(most)s
) AS waiting
"""  # noqa: S608 - a constant of ours


class Keyed(Protocol):
    """The columns of a delivery that say where it stands in the order of its key."""

    subscription_id: uuid.UUID
    event_id: uuid.UUID
    status: str
    ordering_key: str | None
    ordered_at: datetime.datetime | None


def _place(delivery: Keyed) -> dict[str, object]:
    return {
        "subscription": delivery.subscription_id,
        "key": delivery.ordering_key,
        "ordered_at": delivery.ordered_at,
        "event": delivery.event_id,
    }


def waits_for(delivery: Keyed) -> uuid.UUID | None:
    """Return the delivery of the same key that has to be over before this one is sent; None if it doesn't wait."""
    if delivery.ordering_key is None or delivery.status != "pending":
        return None
    with server_cursor(scalar_row) as cursor:
        blocker: uuid.UUID | None = cursor.execute(_BLOCKER, _place(delivery)).fetchone()
    return blocker


def count_waiting(delivery: Keyed, most: int) -> int:
    """Return how many later deliveries of the same key aren't over, `most` if there are more."""
    with server_cursor(scalar_row) as cursor:
        number = cursor.execute(_COUNT_WAITING, {**_place(delivery), "most": most}).fetchone()
    return number or 0


def park(queues: Sequence[uuid.UUID], blocks: Sequence[bool], cursor: psycopg.Cursor[object]) -> None:
    """Park due deliveries that have to wait for an earlier one.  The queues are locked.

    blocks: for each queue, whether a failed delivery keeps its key waiting.
    """
    cursor.execute(_PARK, {"queues": list(queues), "blocks": list(blocks), "until": PARKED_UNTIL})


def unpark(keys: Iterable[tuple[uuid.UUID, str]], cursor: psycopg.Cursor[uuid.UUID]) -> set[uuid.UUID]:
    """Let the first unfinished delivery of each subscription and key be due, if it was parked.

    The queues are locked; returns those that have such a delivery, for `mark_due`.
    """
    pairs = list(keys)
    parameters = {
        "queues": plain_array(queue for queue, _ in pairs),
        "keys": text_array(key for _, key in pairs),
        "parked": PARKED_FROM,
    }
    return set(cursor.execute(_UNPARK, parameters).fetchall())


def unpark_forgotten(subscription_id: uuid.UUID) -> int:
    """Let deliveries be due that are parked and have nothing to wait for; return of how many keys.

    The queue is locked only if there are any.
    """
    unparked = 0
    after: str | None = ""
    while after is not None:
        forgotten, after = _find_forgotten(subscription_id, after)
        if forgotten:
            unparked += in_transaction(lambda keys=forgotten: _unpark_forgotten(subscription_id, keys))  # type: ignore[misc]
    return unparked


def _find_forgotten(subscription_id: uuid.UUID, after: str) -> tuple[list[str], str | None]:
    """Return which of the next keys behind `after` were forgotten, and the last one looked at, None at the end."""
    with server_cursor(scalar_row) as cursor:
        keys = cursor.execute(_WAITING_KEYS, {"queue": subscription_id, "after": after}).fetchall()
        return _forgotten(subscription_id, keys, cursor), keys[-1] if len(keys) >= KEYS_AT_A_TIME else None


def _forgotten(subscription_id: uuid.UUID, keys: Sequence[str], cursor: psycopg.Cursor[str]) -> list[str]:
    if not keys:
        return []
    parameters = {"queue": subscription_id, "keys": text_array(keys), "parked": PARKED_FROM}
    return cursor.execute(_FIND_FORGOTTEN, parameters).fetchall()


def _unpark_forgotten(subscription_id: uuid.UUID, keys: Sequence[str]) -> int:
    with server_cursor(scalar_row) as cursor:
        lock_queues([subscription_id])
        forgotten = _forgotten(subscription_id, keys, cursor)
        mark_due(unpark([(subscription_id, key) for key in forgotten], cursor))
    return len(forgotten)


def repair_order() -> int:
    """Unpark forgotten deliveries of every queue that has deliveries with keys; return of how many keys."""
    queues = list(
        SubscriptionQueue.objects.filter(has_ordered=True, accepts_deliveries=True).values_list("pk", flat=True)
    )
    repaired = sum(map(unpark_forgotten, queues))
    if repaired:
        log.warning("order_repaired", keys=repaired)
    return repaired
