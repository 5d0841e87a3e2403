"""Which subscriptions want each event of a round.  An event's data is read only if a filter needs it, and only once."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Protocol, TypeVar

from cachetools import LRUCache
from psycopg.rows import scalar_row

from core.arrays import plain_array
from core.db import server_cursor
from events.models import ERASED
from webhooks.models import Subscription
from webhooks.routing.claim_events import AcceptedEvent
from webhooks.routing.filters import parse_data
from webhooks.routing.matching import Candidates, Judged, Matcher, SubscribedTypes
from webhooks.routing.subscribers import wanted_by

# How long a round may evaluate filters: a newly accepted event may have to wait that long, and for one more filter.  It
# is processor time, so that rounds on a busy machine don't become so short that they achieve nothing.
FILTER_SECONDS = 0.02
# If several organizations have events for filters, each gets at most this part of it.
SHARES = 4
# Events whose filters took longer, with the results so far: for each at most as many as its organization has
# subscriptions.
MOST_UNFINISHED = 64
MOST_REMEMBERED = 1_000  # organizations
# Events whose data is in memory together.  An event has at most MAX_EVENT_BYTES.
EVENTS_AT_A_TIME = 64

# SQL, because the LIMIT makes it one look-up for each id, whatever the number of partitions.
_READ_DATA = """
SELECT e.id, e.data FROM unnest(%(ids)s::uuid[]) AS wanted(id)
CROSS JOIN LATERAL (SELECT id, data FROM events_event WHERE id = wanted.id LIMIT 1) AS e
"""

# The same for events whose data was erased.
_FIND_ERASED = """
SELECT e.id FROM unnest(%(ids)s::uuid[]) AS wanted(id)
CROSS JOIN LATERAL (SELECT id, data FROM events_event WHERE id = wanted.id LIMIT 1) AS e
WHERE e.data = %(erased)s
"""

T = TypeVar("T")
_NOBODY = Candidates(())

Wanting = dict[uuid.UUID, Sequence[SubscribedTypes]]


class RoundMemory:
    """What a thread remembers from round to round: unfinished filters, and whose turn comes next."""

    def __init__(self) -> None:
        # The results so far of events whose filters took longer than a round: the next round continues from there.
        self.judged: LRUCache[uuid.UUID, Judged] = LRUCache(MOST_UNFINISHED)
        # The last round in which filters of each organization were evaluated: the one that waited longest comes first.
        self._served: LRUCache[uuid.UUID, int] = LRUCache(MOST_REMEMBERED)
        self._rounds = 0

    def begin(self) -> None:
        """Begin a round."""
        self._rounds += 1

    def note(self, organization_id: uuid.UUID) -> None:
        """Note that filters of the organization are evaluated in this round."""
        self._served[organization_id] = self._rounds

    def last_served(self, organization_id: uuid.UUID) -> int:
        """Return the number of the round that last evaluated filters of the organization."""
        return self._served.get(organization_id, 0)


def select(
    events: Sequence[AcceptedEvent],
    matchers: Mapping[uuid.UUID, Matcher],
    overdue: Collection[uuid.UUID] = (),
    memory: RoundMemory | None = None,
) -> Wanting:
    """Return for each event the subscriptions that want it.

    overdue: organizations whose turn it is.  If filters take longer than FILTER_SECONDS, or those of one organization
    longer than its share, events are left out; of each organization, no event is in the result that comes after one
    that isn't.  The result may be empty: then at least one more filter was evaluated for one of them.

    memory: kept from round to round by the caller.
    """
    memory = memory or RoundMemory()
    memory.begin()
    wanting: Wanting = {}
    filtered: dict[uuid.UUID, list[tuple[AcceptedEvent, Candidates]]] = defaultdict(list)
    for event in events:
        matcher = matchers.get(event.organization_id)
        candidates = matcher.candidates(event.type) if matcher is not None else _NOBODY
        if candidates.has_filters:
            filtered[event.organization_id].append((event, candidates))
        else:
            wanting[event.id] = candidates.without_data(event.channels or ())
    if not filtered:
        return wanting
    order = sorted(filtered, key=lambda key: (key not in overdue, memory.last_served(key)))
    turns = _in_turns([filtered[key] for key in order])
    left = dict.fromkeys(filtered, FILTER_SECONDS / min(len(filtered), SHARES))
    ended: set[uuid.UUID] = set()
    ends = time.thread_time() + FILTER_SECONDS
    evaluated = False
    while taken := list(islice(turns, EVENTS_AT_A_TIME)):
        part = [(event, candidates) for event, candidates in taken if event.organization_id not in ended]
        data = read_data([event.id for event, _ in part])
        for event, candidates in part:
            key = event.organization_id
            if key in ended:
                continue
            began = time.thread_time()
            if evaluated and began > ends:
                return _without_gaps(events, wanting)
            evaluated = True
            memory.note(key)
            judged = memory.judged.pop(event.id, {})
            found = candidates.by_data(
                event.channels or (), parse_data(data[event.id]), judged, min(ends, began + left[key])
            )
            if judged:
                memory.judged[event.id] = judged  # also if it is complete: its turn may come in another round
            if found is not None:
                wanting[event.id] = found
            left[key] -= time.thread_time() - began
            if found is None or left[key] <= 0:
                ended.add(key)
    return _without_gaps(events, wanting)


class StoredEvent(Protocol):
    """What decides whether a subscription wants an event, unless it has a filter."""

    @property
    def id(self) -> uuid.UUID: ...
    @property
    def type(self) -> str: ...
    @property
    def channels(self) -> Sequence[str] | None: ...


def wanted_events(subscription: Subscription, events: Iterable[StoredEvent]) -> list[uuid.UUID]:
    """Return the ids of those of stored events that a subscription wants.

    An event whose payload was erased is wanted by no subscription.
    """
    wanted = wanted_by(subscription)
    matcher = Matcher([wanted])
    ids = [event.id for event in events if matcher.match(event.type) and wanted.wants_channels(event.channels or ())]
    ids = _not_erased(ids)
    if wanted.filter is None:
        return ids
    found = []
    for start in range(0, len(ids), EVENTS_AT_A_TIME):
        part = ids[start : start + EVENTS_AT_A_TIME]
        data = read_data(part)
        found += [
            event_id for event_id in part if event_id in data and wanted.filter.matches(parse_data(data[event_id]))
        ]
    return found


def erased_among(event_ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Return those of stored events whose payload was erased."""
    with server_cursor(scalar_row) as cursor:
        return set(cursor.execute(_FIND_ERASED, {"ids": plain_array(event_ids), "erased": ERASED}).fetchall())


def _not_erased(event_ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    erased = erased_among(event_ids)
    return [event_id for event_id in event_ids if event_id not in erased]


def read_data(event_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
    """Return the data of events, as it was sent."""
    with server_cursor() as cursor:
        return dict(cursor.execute(_READ_DATA, {"ids": plain_array(event_ids)}).fetchall())


def _in_turns(groups: Iterable[Sequence[T]]) -> Iterator[T]:
    """Yield the first of each group, then the second of each, and so on."""
    for row in zip_longest(*groups):
        yield from (item for item in row if item is not None)


def _without_gaps(events: Sequence[AcceptedEvent], wanting: Wanting) -> Wanting:
    """Leave out, for each organization, the events after one that wasn't evaluated."""
    ended: set[uuid.UUID] = set()
    kept: Wanting = {}
    for event in events:
        if event.id not in wanting:
            ended.add(event.organization_id)
        if event.organization_id not in ended:
            kept[event.id] = wanting[event.id]
    return kept
