"""Which subscriptions want an event."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cachetools import LRUCache

from events.payload import EVERYTHING

# Event types whose subscriptions are remembered; a producer may invent any number of them.
REMEMBERED_TYPES = 1_000


@dataclass(frozen=True, slots=True)
class SubscribedTypes:
    """What a subscription wants, as the fan-out sees it."""

    subscription_id: uuid.UUID
    event_types: tuple[str, ...]
    is_active: bool
    is_inbox: bool = False


class Matcher:
    """The subscriptions of one organization, arranged for looking up by event type."""

    def __init__(self, subscriptions: Iterable[SubscribedTypes]) -> None:
        self._everything: list[SubscribedTypes] = []
        self._exact: dict[str, list[SubscribedTypes]] = defaultdict(list)
        self._prefix: dict[str, list[SubscribedTypes]] = defaultdict(list)
        self._found: LRUCache[str, list[SubscribedTypes]] = LRUCache(REMEMBERED_TYPES)
        for subscription in subscriptions:
            for pattern in subscription.event_types:
                if pattern == EVERYTHING:
                    self._everything.append(subscription)
                elif pattern.endswith(".*"):
                    self._prefix[pattern[:-2]].append(subscription)
                else:
                    self._exact[pattern].append(subscription)

    def match(self, event_type: str) -> list[SubscribedTypes]:
        """Return the subscriptions that want `event_type`, each once.

        `order.*` wants `order.created` and `order.line.added`, not `order` and not `orders.created`.
        """
        found = self._found.get(event_type)
        if found is None:
            found = self._found[event_type] = self._search(event_type)
        return found

    def _search(self, event_type: str) -> list[SubscribedTypes]:
        wanting = {s.subscription_id: s for s in self._everything}
        wanting.update((s.subscription_id, s) for s in self._exact.get(event_type, ()))
        prefix = event_type
        while "." in prefix:
            prefix = prefix.rpartition(".")[0]
            wanting.update((s.subscription_id, s) for s in self._prefix.get(prefix, ()))
        return list(wanting.values())
