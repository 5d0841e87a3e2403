"""Which subscriptions want an event: by its type, then by its channels, then by its data."""

from __future__ import annotations

import math
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache

from events.payload import EVERYTHING, OPERATIONAL_PREFIX
from webhooks.routing.filters import Filter, Path, RequiredRange, StoredFilter, values_at
from webhooks.routing.intervals import Intervals

# How many subscriptions, over all remembered event types, are kept; a producer may invent any number of types.
REMEMBERED_SUBSCRIPTIONS = 50_000
# Items of an array that are looked up in the ranges of filters.
MOST_VALUES = 8


@dataclass(frozen=True, slots=True)
class SubscribedTypes:
    """What a subscription wants, as the fan-out sees it.  channels: any of these; empty for all events.

    host: of its endpoint, for limits by host; empty for an inbox, and for a URL that leads nowhere.
    """

    subscription_id: uuid.UUID
    event_types: tuple[str, ...]
    is_active: bool
    is_inbox: bool = False
    host: str = ""
    channels: frozenset[str] = frozenset()
    filter: Filter | StoredFilter | None = None
    is_ordered: bool = False
    is_operational: bool = False

    def wants_channels(self, channels: Collection[str]) -> bool:
        """Return whether an event with these channels is wanted."""
        return not self.channels or not self.channels.isdisjoint(channels)


# What has been evaluated for an event so far: by subscription, whether its filter matches.  A subscription that was
# changed since is another object.
Judged = dict[uuid.UUID, tuple[SubscribedTypes, bool]]


class Candidates:
    """The subscriptions to an event type, arranged by what else an event needs to match them."""

    def __init__(self, subscriptions: Iterable[SubscribedTypes]) -> None:
        self.all = list(subscriptions)
        self.has_channels = any(one.channels for one in self.all)
        self._unfiltered = [one for one in self.all if one.filter is None]
        filtered = [one for one in self.all if one.filter is not None]
        self.has_filters = bool(filtered)
        # By what has to be in the data: for a thousand subscriptions that each want one customer, one look-up is
        # enough.
        by_value: dict[Path, dict[Any, list[SubscribedTypes]]] = defaultdict(lambda: defaultdict(list))
        ranges: dict[Path, list[tuple[Any, Any, SubscribedTypes]]] = defaultdict(list)
        self._others: list[SubscribedTypes] = []
        for one in filtered:
            required = one.filter.required if one.filter is not None else None
            if isinstance(required, RequiredRange):
                ranges[required.path].append((required.low, required.high, one))
            elif required is not None:
                for value in required.values:
                    by_value[required.path][value].append(one)
            else:
                self._others.append(one)
        self._groups: list[_ByValue | _ByRange] = [_ByValue(path, group) for path, group in by_value.items()]
        self._groups += [_ByRange(path, group) for path, group in ranges.items()]

    def without_data(self, channels: Collection[str]) -> list[SubscribedTypes]:
        """Return the subscriptions that want an event with these channels.  For candidates without filters."""
        return [one for one in self.all if one.wants_channels(channels)] if self.has_channels else self.all

    def by_data(
        self, channels: Collection[str], data: Any, judged: Judged, ends: float = math.inf
    ) -> list[SubscribedTypes] | None:
        """Return the subscriptions that want an event; None if not all filters have been evaluated by `ends`.

        data: as `filters.parse_data` returned it.  judged: the results so far for an event that takes longer, to which
        this call adds at least one.  ends: a time of `time.thread_time`.
        """
        worth = self._worth_a_look(data)
        found = self._unfiltered
        if self.has_channels:
            found, worth = [[one for one in some if one.wants_channels(channels)] for some in (found, worth)]
        wanting: list[SubscribedTypes] = []
        evaluated = False
        # Reading the processor time takes half as long as a filter, so it isn't read before this much time has passed.
        earliest = time.perf_counter() + ends - time.thread_time()
        for position, one in enumerate(worth):
            before = judged.get(one.subscription_id) if judged else None
            if before is not None and before[0] is one:
                wants = before[1]
            elif evaluated and time.perf_counter() > earliest and time.thread_time() > ends:
                _note(judged, worth[:position], wanting)
                return None
            else:
                wants, evaluated = one.filter.matches(data), True  # type: ignore[union-attr]
            if wants:
                wanting.append(one)
        if judged:
            _note(judged, worth, wanting)
        return found + wanting

    def _worth_a_look(self, data: Any) -> list[SubscribedTypes]:
        """Return the subscriptions, each once, whose filters may match the data; the others don't."""
        found = list(self._others)
        for group in self._groups:
            found += group.worth_a_look(data)
        return found


def _note(judged: Judged, subscriptions: Iterable[SubscribedTypes], wanting: Iterable[SubscribedTypes]) -> None:
    yes = {id(one) for one in wanting}
    judged.update((one.subscription_id, (one, id(one) in yes)) for one in subscriptions)


class _ByValue:
    """Subscriptions by the value that a member of the data has to be, or to hold."""

    def __init__(self, path: Path, by_value: Mapping[Any, list[SubscribedTypes]]) -> None:
        self._path = path
        self._by_value = dict(by_value)

    def worth_a_look(self, data: Any) -> list[SubscribedTypes]:
        values = values_at(self._path, data)
        if values is None:
            return _each_once(one for group in self._by_value.values() for one in group)
        if len(values) == 1:
            value = values[0]
            return self._by_value.get(value, []) if type(value) is not dict and type(value) is not list else []
        scalars = {value for value in values if type(value) is not dict and type(value) is not list}
        return _each_once(one for value in scalars for one in self._by_value.get(value, ()))


class _ByRange:
    """Subscriptions by the range that a member of the data has to be in."""

    def __init__(self, path: Path, ranges: Sequence[tuple[Any, Any, SubscribedTypes]]) -> None:
        self._path = path
        self._all = [one for _, _, one in ranges]
        texts = [one for one in ranges if isinstance(one[1] if one[0] is None else one[0], str)]
        are_texts = {id(one) for one in texts}
        self._texts = Intervals(texts)
        self._numbers = Intervals(one for one in ranges if id(one) not in are_texts)

    def worth_a_look(self, data: Any) -> list[SubscribedTypes]:
        values = values_at(self._path, data)
        if values is None:
            return self._all
        if len(values) == 1:
            return self._holding(values[0])
        # Many values are in the same ranges.
        if len(values) > MOST_VALUES:
            return self._all
        return _each_once(one for value in values for one in self._holding(value))

    def _holding(self, value: Any) -> list[SubscribedTypes]:
        kind = type(value)
        if kind is int or kind is float:
            return self._numbers.holding(value)
        return self._texts.holding(value) if kind is str else []


def _each_once(subscriptions: Iterable[SubscribedTypes]) -> list[SubscribedTypes]:
    return list({id(one): one for one in subscriptions}.values())


class Matcher:
    """The subscriptions of one organization, arranged for looking up by event type."""

    def __init__(self, subscriptions: Iterable[SubscribedTypes]) -> None:
        self._everything: list[SubscribedTypes] = []
        self._exact: dict[str, list[SubscribedTypes]] = defaultdict(list)
        self._prefix: dict[str, list[SubscribedTypes]] = defaultdict(list)
        self._found: LRUCache[str, Candidates] = LRUCache(
            REMEMBERED_SUBSCRIPTIONS, lambda found: min(1 + len(found.all), REMEMBERED_SUBSCRIPTIONS)
        )
        for subscription in subscriptions:
            for pattern in subscription.event_types:
                if pattern == EVERYTHING:
                    self._everything.append(subscription)
                elif pattern.endswith(".*"):
                    self._prefix[pattern[:-2]].append(subscription)
                else:
                    self._exact[pattern].append(subscription)

    def match(self, event_type: str) -> list[SubscribedTypes]:
        """Return the subscriptions that want `event_type`, each once, whatever their channels and filters say.

        `order.*` wants `order.created` and `order.line.added`, not `order` and not `orders.created`.
        """
        return self.candidates(event_type).all

    def candidates(self, event_type: str) -> Candidates:
        """Return the subscriptions that want `event_type`, to be matched with the rest of an event."""
        found = self._found.get(event_type)
        if found is None:
            found = self._found[event_type] = Candidates(self._search(event_type))
        return found

    def _search(self, event_type: str) -> list[SubscribedTypes]:
        wanting = {s.subscription_id: s for s in self._everything}
        wanting.update((s.subscription_id, s) for s in self._exact.get(event_type, ()))
        prefix = event_type
        while "." in prefix:
            prefix = prefix.rpartition(".")[0]
            wanting.update((s.subscription_id, s) for s in self._prefix.get(prefix, ()))
        is_operational = event_type.startswith(OPERATIONAL_PREFIX)
        return [one for one in wanting.values() if one.is_operational == is_operational]
