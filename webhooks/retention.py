"""Deleting what is old: settled events with their deliveries and attempts, past the organisation's days."""

from __future__ import annotations

import datetime
import time
import uuid
from dataclasses import dataclass, field

from core.db import in_transaction, server_cursor
from events import sql as events_sql
from webhooks import sql

BATCH = 500
# An event may have a delivery for each of a thousand subscriptions: a transaction deletes about this many.
DELIVERIES_AT_A_TIME = 5000
# Finished replays and recoveries that belong to no organisation.
RUNS_KEPT_DAYS = 30

_Place = tuple[datetime.datetime | str, uuid.UUID]
_START: _Place = ("-infinity", uuid.UUID(int=0))


@dataclass
class Purged:
    """How many rows went.  is_complete: a whole pass was made, nothing expired is left."""

    events: int = 0
    deliveries: int = 0
    attempts: int = 0
    dedup_keys: int = 0
    bulk_runs: int = 0
    subscriptions: int = 0
    is_complete: bool = False


@dataclass
class _Pass:
    """A walk over all that is old enough: the organisations still to come, and the place in the first."""

    organizations: list[uuid.UUID]
    place: _Place = field(default=_START)


class Purge:
    """Deletes expired rows in small transactions, and remembers its place from one slice to the next.

    An event goes when it is older than its organisation's `retention_days`, is processed, and all its
    deliveries are settled (delivered, failed or cancelled).  Nothing unsettled is ever deleted: an event
    in `error` was never fanned out and stays until somebody reprocesses it.  What stays is passed over
    once in a walk, so that any amount of it keeps nothing else from going.
    """

    def __init__(self) -> None:
        self._pass: _Pass | None = None

    def run(self, seconds: float | None = None) -> Purged:
        """Go on until the walk is complete, or for `seconds`; return what went."""
        ends = time.monotonic() + seconds if seconds is not None else float("inf")
        total = Purged()
        keys_left = runs_left = subscriptions_left = True
        while True:
            if keys_left:
                keys = in_transaction(lambda: _delete(events_sql.DELETE_EXPIRED_DEDUP_KEYS, (BATCH,)))
                total.dedup_keys += keys
                keys_left = keys >= BATCH
            if runs_left:
                runs = in_transaction(
                    lambda: _delete(sql.DELETE_FINISHED_RUNS, {"days": RUNS_KEPT_DAYS, "rows": BATCH})
                )
                total.bulk_runs += runs
                runs_left = runs >= BATCH
            if subscriptions_left:
                forgotten = in_transaction(_forget_subscriptions)
                total.subscriptions += forgotten
                subscriptions_left = forgotten >= BATCH
            walked = self._step(total)
            if walked and not keys_left and not runs_left and not subscriptions_left:
                total.is_complete = True
                return total
            if time.monotonic() >= ends:
                return total

    def _step(self, total: Purged) -> bool:
        """Look at the next events; True when the walk is at its end."""
        if self._pass is None:
            with server_cursor() as cursor:
                found = cursor.execute(sql.FIND_ORGANIZATIONS_WITH_EXPIRED).fetchall()
            self._pass = _Pass([row[0] for row in found])
        if not self._pass.organizations:
            self._pass = None
            return True
        organization, place = self._pass.organizations[0], self._pass.place
        following, events, deliveries, attempts = in_transaction(lambda: _purge_events(organization, place))
        total.events += events
        total.deliveries += deliveries
        total.attempts += attempts
        if following is None:
            self._pass.organizations.pop(0)
        self._pass.place = following or _START
        return False


def purge_expired() -> Purged:
    """Delete everything that is expired; return how many rows went."""
    return Purge().run()


def _purge_events(organization: uuid.UUID, place: _Place) -> tuple[_Place | None, int, int, int]:
    """Delete what may go of an organisation's next events.

    Returns the place to go on from (None at the end) and the numbers of events, deliveries and attempts.
    """
    with server_cursor() as cursor:
        parameters = {"organization": organization, "after_at": place[0], "after_id": place[1], "rows": BATCH}
        found = cursor.execute(sql.FIND_EXPIRED_EVENTS, parameters).fetchall()
        chosen: list[uuid.UUID] = []
        following: _Place | None = None
        deliveries = 0
        for event_id, created_at, is_settled, count in found:
            if chosen and deliveries + count > DELIVERIES_AT_A_TIME:
                break
            following = (created_at, event_id)
            if is_settled:
                chosen.append(event_id)
                deliveries += count
        else:
            if len(found) < BATCH:
                following = None
        chosen = [row[0] for row in cursor.execute(sql.LOCK_EVENTS, (chosen,)).fetchall()]
        # Locked and looked at again: a delivery may have been replayed since.
        cursor.execute(sql.LOCK_DELIVERIES_OF_EVENTS, (chosen,))
        unsettled = {event_id for event_id, status in cursor.fetchall() if status in sql.UNSETTLED}
        chosen = [event_id for event_id in chosen if event_id not in unsettled]
        if not chosen:
            return following, 0, 0, 0
        attempts = cursor.execute(sql.DELETE_ATTEMPTS, (chosen,)).rowcount
        deliveries = cursor.execute(sql.DELETE_DELIVERIES, (chosen,)).rowcount
        events = cursor.execute("DELETE FROM events_event WHERE id = ANY(%s::uuid[])", (chosen,)).rowcount
        return following, events, deliveries, attempts


def _forget_subscriptions() -> int:
    """Delete subscriptions that were deleted long ago and that nothing refers to any more."""
    with server_cursor() as cursor:
        ids = [row[0] for row in cursor.execute(sql.FIND_FORGETTABLE_SUBSCRIPTIONS, (BATCH,)).fetchall()]
        for statement in sql.FORGET_SUBSCRIPTIONS if ids else ():
            cursor.execute(statement, (ids,))
    return len(ids)


def _delete(statement: str, parameters: tuple[int, ...] | dict[str, int]) -> int:
    with server_cursor() as cursor:
        return cursor.execute(statement, parameters).rowcount
