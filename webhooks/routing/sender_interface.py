"""The interface of a sender that takes new deliveries straight from the fan-out.

A delivery that is handed over is inserted as `delivering`, under a lease of this process's sender, so that no claim has
to find it first.  `webhooks.dispatch.hand_over` implements this.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from webhooks.routing.insert import NewDeliveries


@dataclass(frozen=True, slots=True)
class QueueDemand:
    """How many deliveries a round has for a queue.  host: of its endpoint."""

    subscription_id: uuid.UUID
    organization_id: uuid.UUID
    host: str
    deliveries: int


class HandOver(Protocol):
    """The places of a sender for the deliveries of one round.  For one thread.

    Each attempt at a round calls `abandon` first, then `choose`, `insert`, and `inserted`; after the commit, `begin`.
    """

    def choose(self, demands: Sequence[QueueDemand], others: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
        """Return how many deliveries of each queue the sender has places for, with all queues of the round locked.

        others: disabled subscriptions, and inboxes, whose queues the round will also mark.  If the sender has places
        for nothing, no queue is locked.  Within the round's transaction.
        """

    def insert(self, deliveries: NewDeliveries) -> None:
        """Insert deliveries for which there are places, leased, and count them in their queues.

        Those of a queue that can't take them now are inserted as due, and left to claims.
        """

    def inserted(self) -> int:
        """Return how many deliveries `insert` made; the others existed."""

    def left_to_claims(self) -> int:
        """Return how many of those that `insert` made a claim may take now."""

    def begin(self) -> None:
        """Give what was leased to the sender: the transaction is committed."""

    def abandon(self) -> None:
        """Give the places back, and forget what was inserted: it was rolled back."""
