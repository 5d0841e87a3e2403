"""Which subscriptions want an event: by its type, then by its channels, then by its data."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache

from events.payload import EVERYTHING, OPERATIONAL_PREFIX
from webhooks.routing.filters import Filter, Path, values_at

# Event types whose subscriptions are remembered; a producer may invent any number of them.
REMEMBERED_TYPES = 1_000


@dataclass(frozen=True, slots=True)
class SubscribedTypes:
    """What a subscription wants, as the fan-out sees it.  channels: any of these; empty for all events."""

    subscription_id: uuid.UUID
    event_types: tuple[str, ...]
    is_active: bool
    is_inbox: bool = False
    channels: frozenset[str] = frozenset()
    filter: Filter | None = None
    is_ordered: bool = False
    is_operational: bool = False

    def wants_channels(self, channels: Collection[str]) -> bool:
        """Tell whether an event with these channels is wanted."""
        return not self.channels or not self.channels.isdisjoint(channels)


class Candidates:
    """The subscriptions that want a type of events, arranged by what else an event has to have for them."""

    def __init__(self, subscriptions: Iterable[SubscribedTypes]) -> None:
        self.all = list(subscriptions)
        self.has_channels = any(one.channels for one in self.all)
        self._unfiltered = [one for one in self.all if one.filter is None]
        filtered = [one for one in self.all if one.filter is not None]
        self.has_filters = bool(filtered)
        # By what has to be in the data: a thousand subscriptions that each want one customer cost one look-up.
        self._by_value: dict[Path, dict[Any, list[SubscribedTypes]]] = defaultdict(lambda: defaultdict(list))
        self._others: list[SubscribedTypes] = []
        for one in filtered:
            required = one.filter.required if one.filter is not None else None
            if required is None:
                self._others.append(one)
                continue
            for value in required.values:
                self._by_value[required.path][value].append(one)

    def without_data(self, channels: Collection[str]) -> list[SubscribedTypes]:
        """Return the subscriptions that want an event with these channels.  For candidates without filters."""
        return [one for one in self.all if one.wants_channels(channels)] if self.has_channels else self.all

    def by_data(self, channels: Collection[str], data: Any) -> list[SubscribedTypes]:
        """Return the subscriptions that want an event.  data: as `filters.parse_data` returned it."""
        found = self._unfiltered + [one for one in self._worth_a_look(data) if one.filter.matches(data)]  # type: ignore[union-attr]
        return [one for one in found if one.wants_channels(channels)] if self.has_channels else found

    def _worth_a_look(self, data: Any) -> list[SubscribedTypes]:
        """Return the subscriptions, each once, whose filters may want the data; the others' don't."""
        found = self._others
        for path, by_value in self._by_value.items():
            values = values_at(path, data)
            if values is None:
                chosen = [one for group in by_value.values() for one in group]
            else:
                chosen = [
                    one
                    for value in values
                    if type(value) is not dict and type(value) is not list
                    for one in by_value.get(value, ())
                ]
            # With several values, a filter with `$in` is found more than once.
            found = found + (list({id(one): one for one in chosen}.values()) if len(chosen) > 1 else chosen)
        return found


class Matcher:
    """The subscriptions of one organization, arranged for looking up by event type."""

    def __init__(self, subscriptions: Iterable[SubscribedTypes]) -> None:
        self._everything: list[SubscribedTypes] = []
        self._exact: dict[str, list[SubscribedTypes]] = defaultdict(list)
        self._prefix: dict[str, list[SubscribedTypes]] = defaultdict(list)
        self._found: LRUCache[str, Candidates] = LRUCache(REMEMBERED_TYPES)
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
        """Return the subscriptions that want `event_type`, for a look at the rest of an event."""
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
