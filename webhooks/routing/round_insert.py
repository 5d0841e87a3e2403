"""What the transaction of a round writes: deliveries, events that are processed, and marks in the queues."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from core.arrays import plain_array
from core.db import server_cursor
from webhooks.models import DeliveryStatus
from webhooks.routing.claim_events import AcceptedEvent
from webhooks.routing.insert import NewDeliveries
from webhooks.routing.matching import SubscribedTypes
from webhooks.routing.selection import Wanting
from webhooks.routing.sender_interface import HandOver, QueueDemand

# SQL, because it is sent in the round's pipeline, and its plan is kept.  The bounds leave out the partitions that have
# none of the ids.
MARK_PROCESSED = """
UPDATE events_event SET status = 'processed', processed_at = clock_timestamp(), last_error = ''
WHERE id = ANY(%(ids)s::uuid[]) AND id >= %(least)s AND id <= %(greatest)s
"""


@dataclass(frozen=True, slots=True)
class Processed:
    """An event that is fanned out, and whether any of its deliveries is new."""

    event: AcceptedEvent
    is_new: bool


class RoundInsert:
    """What a transaction does with its events.  How many deliveries are new is known when it is committed."""

    def __init__(
        self,
        chosen: Sequence[AcceptedEvent] = (),
        wanting: Wanting | None = None,
        put_off: Collection[uuid.UUID] = (),
        hand_over: HandOver | None = None,
        between_pieces: Callable[[], None] | None = None,
    ) -> None:
        self.chosen = chosen
        self.put_off = put_off
        self.pending = NewDeliveries()
        self._wanting: Wanting = wanting or {}
        self._hand_over = hand_over
        self._between_pieces = between_pieces
        self._inserting, self._ordering = server_cursor(), server_cursor()
        self._left_to_claims = False

    def insert(self) -> None:
        """Insert the deliveries, and mark the events as processed and the queues as due."""
        if not self.chosen:
            return
        delay = settings.DELIVERY_RETRY_SCHEDULE[0]
        self.pending, handed_over = _divide(self.chosen, self._wanting, self._hand_over)
        if not len(handed_over):
            self._hand_over = None
        if self._hand_over is not None:
            self._hand_over.insert(handed_over)
        self.pending.insert(delay, self._inserting, self._ordering, self._between_pieces)
        ids = [event.id for event in self.chosen]
        other = server_cursor()
        other.execute(MARK_PROCESSED, {"ids": plain_array(ids), "least": min(ids), "greatest": max(ids)})
        self.pending.mark_queues(delay, other)

    @property
    def left_to_claims(self) -> bool:
        """Return whether a claim may take deliveries now that were not handed over; after `outcomes`."""
        return bool(self.pending.due) or self._left_to_claims

    def outcomes(self) -> list[Processed]:
        """Return the events that were processed."""
        if not self.chosen:
            return []
        wanted = sum(len(self._wanting[event.id]) for event in self.chosen)
        inserted = self.pending.inserted(self._inserting, self._ordering)
        if self._hand_over is not None:
            inserted += self._hand_over.inserted()
            self._left_to_claims = self._hand_over.left_to_claims() > 0
        # If all were inserted, every delivery is new; if not, only in a round of one event is it known whose weren't.
        new = not wanted or inserted == wanted or len(self.chosen) > 1
        return [Processed(event, new or not self._wanting[event.id]) for event in self.chosen]


def _hand_over_places(
    chosen: Sequence[AcceptedEvent], wanting: Mapping[uuid.UUID, Sequence[SubscribedTypes]], hand_over: HandOver
) -> dict[uuid.UUID, int]:
    """Return for how many deliveries of each subscription the sender has places."""
    # A delivery with an ordering key has to be claimed: its turn is decided under the lock of its queue.
    in_order = {
        one.subscription_id
        for event in chosen
        if event.ordering_key is not None
        for one in wanting[event.id]
        if one.is_ordered
    }
    numbers = Counter(one.subscription_id for event in chosen for one in wanting[event.id])
    demands = {
        one.subscription_id: QueueDemand(
            one.subscription_id, event.organization_id, one.host, numbers[one.subscription_id]
        )
        for event in chosen
        for one in wanting[event.id]
        if one.is_active and not one.is_inbox and one.subscription_id not in in_order
    }
    return hand_over.choose(list(demands.values()), numbers.keys() - demands.keys())


def _divide(
    chosen: Sequence[AcceptedEvent],
    wanting: Mapping[uuid.UUID, Sequence[SubscribedTypes]],
    hand_over: HandOver | None,
) -> tuple[NewDeliveries, NewDeliveries]:
    """Return the deliveries of the round: those for claims to find, and those that are handed over."""
    places = {} if hand_over is None else _hand_over_places(chosen, wanting, hand_over)
    pending, handed_over = NewDeliveries(), NewDeliveries()
    for event in chosen:
        at_once: list[uuid.UUID] = []
        inboxes: list[uuid.UUID] = []
        later: list[uuid.UUID] = []
        held: list[uuid.UUID] = []
        held_inboxes: list[uuid.UUID] = []
        for subscription in wanting[event.id]:
            subscription_id = subscription.subscription_id
            if subscription.is_ordered and event.ordering_key is not None and event.created_at is not None:
                status: Any = DeliveryStatus.PENDING if subscription.is_active else DeliveryStatus.HELD
                pending.add_ordered(
                    event.organization_id, event.id, subscription_id, status, event.ordering_key, event.created_at
                )
            elif not subscription.is_active:
                (held_inboxes if subscription.is_inbox else held).append(subscription_id)
            elif places.get(subscription_id, 0) > 0:
                places[subscription_id] -= 1
                at_once.append(subscription_id)
            elif subscription.is_inbox:
                inboxes.append(subscription_id)
            else:
                later.append(subscription_id)
        handed_over.add(event.organization_id, event.id, at_once, DeliveryStatus.PENDING)
        pending.add(event.organization_id, event.id, later, DeliveryStatus.PENDING)
        pending.add(event.organization_id, event.id, inboxes, DeliveryStatus.PENDING, inbox_type=event.type)
        pending.add(event.organization_id, event.id, held, DeliveryStatus.HELD)
        pending.add(event.organization_id, event.id, held_inboxes, DeliveryStatus.HELD, inbox_type=event.type)
    return pending, handed_over
