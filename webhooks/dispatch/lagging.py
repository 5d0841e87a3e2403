"""Notes which organizations' deliveries lag because the processors are busy, so that their requests are paced.

A backlog whose endpoint takes its time is not the processors' fault: nobody's requests wait for an endpoint.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection

from core.processor_load import processors_are_busy
from events.lagging import note_lagging
from webhooks.dispatch.claim import Claim

# The endpoint of a subscription with a request in flight for longer than this takes its time.
SLOW_SECONDS = 0.5
# The least time between two notes; each counts for longer.
PAUSE_SECONDS = 0.1


class LaggingNotes:
    """Notes what a sender's claims find.  are_busy: returns whether the processors are busy.  now: a monotonic clock.

    For one thread.
    """

    def __init__(
        self, are_busy: Callable[[], bool] = processors_are_busy, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._are_busy = are_busy
        self._now = now
        self._noted_at = float("-inf")

    def note(self, claimed: Claim, slow: Collection[uuid.UUID]) -> None:
        """Note the organizations whose queues still have a backlog after a claim, if the processors are busy.

        slow: the subscriptions whose endpoints take their time.
        """
        now = self._now()
        if not claimed.backlog or now - self._noted_at < PAUSE_SECONDS or not self._are_busy():
            return
        lagging = {
            delivery.organization_id
            for delivery in claimed.deliveries
            if delivery.subscription_id in claimed.backlog and delivery.subscription_id not in slow
        }
        if lagging:
            self._noted_at = now
            note_lagging(lagging)
