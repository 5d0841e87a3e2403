"""The interface of a sender that takes new deliveries straight from the fan-out.

A delivery that is handed over is inserted as `delivering`, under a lease of this process's sender, so that no claim has
to find it first.  `webhooks.dispatch.hand_over` implements this.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Protocol

from webhooks.routing.insert import NewDeliveries


class HandOver(Protocol):
    """The places of a sender for the deliveries of one round.  For one thread.

    Each attempt at a round calls `abandon` first, then `choose`, `insert`, and `inserted`; after the commit, `begin`.
    """

    def choose(self, wanted: Mapping[uuid.UUID, int], others: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
        """Return how many deliveries each queue gets that can take some at once, with all queues of the round locked.

        wanted: by subscription, how many deliveries the round has for it.  others: disabled subscriptions, and inboxes.
        Within the round's transaction.
        """

    def insert(self, deliveries: NewDeliveries) -> None:
        """Insert deliveries under a lease, and count them in their queues."""

    def inserted(self) -> int:
        """Return how many deliveries `insert` made; the others existed."""

    def begin(self) -> None:
        """Give what was inserted to the sender: the transaction is committed."""

    def abandon(self) -> None:
        """Give the places back, and forget what was inserted: it was rolled back."""
