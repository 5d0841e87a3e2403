"""Which subscriptions want each event of a round.  An event's data is read only if a filter asks for it, and once."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import TypeVar

from core.arrays import plain_array
from core.db import server_cursor
from events.models import ERASED
from webhooks.models import Subscription
from webhooks.routing.claim_events import AcceptedEvent
from webhooks.routing.filters import parse_data
from webhooks.routing.matching import Candidates, Matcher, SubscribedTypes
from webhooks.routing.subscribers import wanted_by

# What a round spends on filters: that long a newly accepted event may have to wait.
FILTER_SECONDS = 0.02
# Events whose data is in memory together.  An event has at most MAX_EVENT_BYTES.
EVENTS_AT_A_TIME = 64

# The LIMIT makes it one look-up for each id.
_READ_DATA = """
SELECT e.id, e.data FROM unnest(%(ids)s::uuid[]) AS wanted(id)
CROSS JOIN LATERAL (SELECT id, data FROM events_event WHERE id = wanted.id LIMIT 1) AS e
"""

_FIND_ERASED = """
SELECT e.id FROM unnest(%(ids)s::uuid[]) AS wanted(id)
CROSS JOIN LATERAL (SELECT id, data FROM events_event WHERE id = wanted.id LIMIT 1) AS e
WHERE e.data = %(erased)s
"""

T = TypeVar("T")
_NOBODY = Candidates(())

Wanting = dict[uuid.UUID, Sequence[SubscribedTypes]]


def select(
    events: Sequence[AcceptedEvent], matchers: Mapping[uuid.UUID, Matcher], overdue: Collection[uuid.UUID] = ()
) -> Wanting:
    """Return for each event the subscriptions that want it.

    overdue: organizations whose turn it is.  If filters take longer than FILTER_SECONDS, events are left out; of each
    organization, no event is in the result that comes after one that isn't.  One event at least is in it.
    """
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
    turns = _in_turns([filtered[key] for key in sorted(filtered, key=lambda key: key not in overdue)])
    started = time.perf_counter()
    evaluated = False
    while part := list(islice(turns, EVENTS_AT_A_TIME)):
        data = read_data([event.id for event, _ in part])
        for event, candidates in part:
            if evaluated and time.perf_counter() - started > FILTER_SECONDS:
                return _without_gaps(events, wanting)
            wanting[event.id] = candidates.by_data(event.channels or (), parse_data(data[event.id]))
            evaluated = True
    return wanting


def wanted_events(
    subscription: Subscription, events: Iterable[tuple[uuid.UUID, str, Sequence[str] | None]]
) -> list[uuid.UUID]:
    """Return those of stored events, given by id, type, and channels, that a subscription wants.

    Nobody wants one whose payload was erased.
    """
    wanted = wanted_by(subscription)
    matcher = Matcher([wanted])
    ids = [
        event_id
        for event_id, event_type, channels in events
        if matcher.match(event_type) and wanted.wants_channels(channels or ())
    ]
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
    with server_cursor() as cursor:
        rows = cursor.execute(_FIND_ERASED, {"ids": plain_array(event_ids), "erased": ERASED}).fetchall()
    return {row[0] for row in rows}


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
    """Leave out, of each organization, what comes after an event that nobody looked at."""
    ended: set[uuid.UUID] = set()
    kept: Wanting = {}
    for event in events:
        if event.id not in wanting:
            ended.add(event.organization_id)
        if event.organization_id not in ended:
            kept[event.id] = wanting[event.id]
    return kept
