"""Accepts events no faster than the workers can keep up: pauses before requests of an organization that is ahead.

Accepting and delivering share the machine.  At full speed, accepting would take so much of it that the workers fall
further and further behind.  So the front door checks now and then how long an organization's oldest accepted event has
waited for its fan-out, and whether its deliveries lag, and pauses before the organization's requests while that is so.
A client that sends as fast as responses come slows down to the rate at which events are delivered; one that sends
steadily notices nothing.

No endpoint slows requests down.  The fan-out needs none, and deliveries count as lagging only if they wait for a
processor (`events.lagging`).  Those of a backlog that is being worked off lag, too: an organization that sends few
events beside it isn't paced for that.  And the fan-out has to make progress: where no worker runs, pauses wouldn't
help.
"""

from __future__ import annotations

import datetime
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from django.conf import settings
from psycopg.rows import class_row

from core.db import server_cursor
from events.lagging import lagging_among

# The longest that an event may wait for its fan-out without a pause for its organization.
MOST_WAITING_SECONDS = 0.035
# The first pause, and the longest.  Each check makes it longer by half, or halves it.
FIRST_SECONDS = 0.004
LONGEST_SECONDS = 0.5
# Between two checks of a process.
LOOK_SECONDS = 0.05
# A fan-out whose oldest event stays the same for this long has stopped.
STOPPED_SECONDS = 1.0
# An organization that outruns its deliveries may send this part of the events per second that are delivered for it,
# until they no longer lag.
SHARE_OF_DELIVERED = 0.5
# Over how many seconds the rate of its events is measured.
RATE_SECONDS = 1.0
# The most organizations that a check sees; the next one continues after the last of them.
ORGANIZATIONS_AT_A_TIME = 100
NOBODY = uuid.UUID(int=0)

# SQL, because the ORM has no recursion.  Jumps from one organization to the next, as `webhooks.routing.claim_events`
# does: the cost depends on how many organizations wait, not on how many events.  The oldest is the one that a claim
# takes first: in the order of that index, and due.
_OLDEST = """
WITH RECURSIVE oldest AS (
    (SELECT organization_id, due_at, 1 AS number FROM events_event
     WHERE status = 'accepted' AND organization_id > %(after)s AND due_at <= statement_timestamp()
     ORDER BY organization_id, created_at, id LIMIT 1)
    UNION ALL
    (SELECT e.organization_id, e.due_at, oldest.number + 1
     FROM oldest CROSS JOIN LATERAL (
         SELECT organization_id, due_at FROM events_event
         WHERE status = 'accepted' AND organization_id > oldest.organization_id AND due_at <= statement_timestamp()
         ORDER BY organization_id, created_at, id LIMIT 1
     ) AS e WHERE oldest.number < %(organizations)s)
)
SELECT organization_id, due_at, extract(epoch FROM clock_timestamp() - due_at)::float8 AS waited FROM oldest
"""


@dataclass(frozen=True, slots=True)
class OldestEvent:
    """An organization's oldest accepted event that is due, and the seconds since it is."""

    organization_id: uuid.UUID
    due_at: datetime.datetime
    waited: float


def oldest_events(after: uuid.UUID) -> list[OldestEvent]:
    """Return the oldest accepted event of each organization that has one, of those behind `after` by their ids."""
    with server_cursor(class_row(OldestEvent)) as cursor:
        return cursor.execute(_OLDEST, {"after": after, "organizations": ORGANIZATIONS_AT_A_TIME}).fetchall()


@dataclass(slots=True)
class _Waiting:
    """The state of an organization whose events wait for their fan-out.

    oldest_due_at: of the oldest of them.  same_since: when that was first so, by the monotonic clock.  pause: in
    seconds.
    """

    oldest_due_at: datetime.datetime
    same_since: float
    pause: float = 0.0


@dataclass(slots=True)
class _Limit:
    """How fast an organization whose deliveries lag may send to this process.

    rate: in events per second.  next_at: when its next request may be stored, by the monotonic clock.
    """

    rate: float
    next_at: float

    def pause(self, now: float, events: int) -> float:
        """Return how long a request has to wait, in seconds, and let the one after it wait for its events."""
        wait = max(0.0, self.next_at - now)
        self.next_at = min(now + LONGEST_SECONDS, now + wait + events / self.rate)
        return wait


class Pacing:
    """The pauses of every organization, in one process.

    find: does as `oldest_events`.  find_lagging: does as `lagging_among`.  clock: a monotonic one, in seconds.
    """

    def __init__(
        self,
        find: Callable[[uuid.UUID], Sequence[OldestEvent]] = oldest_events,
        find_lagging: Callable[[Collection[uuid.UUID]], Mapping[uuid.UUID, float]] = lagging_among,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._find_lagging = find_lagging
        self._clock = clock
        self._waiting: dict[uuid.UUID, _Waiting] = {}
        self._limits: dict[uuid.UUID, _Limit] = {}
        self._sent: Counter[uuid.UUID] = Counter()  # events since the last look
        self._rates: dict[uuid.UUID, float] = {}  # events per second
        self._after = NOBODY
        self._next_look_at = self._looked_at = float("-inf")

    def pause(self, organization_id: uuid.UUID, events: int = 1) -> float:
        """Return how long to wait, in seconds, before the organization's next request is stored.

        events: how many the request has.  A check that was long ago doesn't count.
        """
        self._sent[organization_id] += events
        if not self._waiting and not self._limits:
            return 0.0
        waiting, limit = self._waiting.get(organization_id), self._limits.get(organization_id)
        now = self._clock()
        if (waiting is None and limit is None) or now - self._looked_at > STOPPED_SECONDS:
            return 0.0
        return max(0.0 if waiting is None else waiting.pause, 0.0 if limit is None else limit.pause(now, events))

    def wants_look(self) -> bool:
        """Return whether `look` should be called now; after that, not for LOOK_SECONDS."""
        now = self._clock()
        if now < self._next_look_at:
            return False
        self._next_look_at = now + LOOK_SECONDS
        return True

    def look(self) -> None:
        """Check which organizations wait, and make their pauses longer or shorter.  For one thread at a time."""
        began_behind = self._after
        found = {oldest.organization_id: oldest for oldest in self._find(began_behind)}
        self._after = max(found) if len(found) == ORGANIZATIONS_AT_A_TIME else NOBODY
        now = self._clock()
        self._measure_rates(now - self._looked_at)
        self._looked_at = now
        self._limits = self._limited(now)
        for organization_id, oldest in found.items():
            if oldest.waited > MOST_WAITING_SECONDS:
                self._lengthen(self._waiting.setdefault(organization_id, _Waiting(oldest.due_at, now)), oldest, now)
        for organization_id, waiting in list(self._waiting.items()):
            if organization_id <= began_behind or (self._after != NOBODY and organization_id > self._after):
                continue  # this look saw other organizations
            late = found.get(organization_id)
            if late is None or late.waited <= MOST_WAITING_SECONDS or now - waiting.same_since >= STOPPED_SECONDS:
                self._shorten(organization_id, waiting, keep=late is not None and late.waited > MOST_WAITING_SECONDS)

    def _measure_rates(self, seconds: float) -> None:
        """Add what was sent since the last look, `seconds` ago, to what is left of the rates before it."""
        sent, self._sent = self._sent, Counter()
        kept = math.exp(-seconds / RATE_SECONDS)
        rates = {organization_id: rate * kept for organization_id, rate in self._rates.items()}
        for organization_id, events in list(sent.items()):
            rates[organization_id] = rates.get(organization_id, 0.0) + events / RATE_SECONDS
        self._rates = {organization_id: rate for organization_id, rate in rates.items() if rate >= 1}

    def _limited(self, now: float) -> dict[uuid.UUID, _Limit]:
        """Return the limits of the organizations that outrun their deliveries, and of those that did and still lag.

        Each web process assumes that the others get as much from an organization as it does itself.
        """
        limits: dict[uuid.UUID, _Limit] = {}
        for organization_id, delivered in self._find_lagging({*self._rates, *self._limits}).items():
            rate = max(1.0, SHARE_OF_DELIVERED * delivered / settings.WEB_CONCURRENCY)
            limit = self._limits.get(organization_id)
            if limit is not None:
                limits[organization_id] = _Limit(rate, limit.next_at)
            elif self._rates[organization_id] > rate:
                limits[organization_id] = _Limit(rate, now)
        return limits

    @staticmethod
    def _lengthen(waiting: _Waiting, oldest: OldestEvent, now: float) -> None:
        if oldest.due_at != waiting.oldest_due_at:
            waiting.oldest_due_at, waiting.same_since = oldest.due_at, now
        if now - waiting.same_since < STOPPED_SECONDS:
            waiting.pause = min(LONGEST_SECONDS, max(FIRST_SECONDS, waiting.pause * 1.5))

    def _shorten(self, organization_id: uuid.UUID, waiting: _Waiting, *, keep: bool) -> None:
        waiting.pause = waiting.pause / 2 if waiting.pause > FIRST_SECONDS else 0.0
        if not waiting.pause and not keep:
            del self._waiting[organization_id]
