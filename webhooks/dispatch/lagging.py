"""Notes which organizations' deliveries lag because the processors are busy, so that their requests are paced.

A backlog whose endpoint takes its time is not the processors' fault, and neither is one of a subscription with a rate
limit, a limit on requests in flight, or ordering keys: nobody's requests wait for those.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from core.processor_load import processors_are_busy
from events.lagging import note_lagging
from webhooks.dispatch.claim import Claim

# The endpoint of a subscription with a request in flight for longer than this takes its time.  A process that waits for
# processors sees responses later, and takes more for it (`core.processor_load.seconds_with_waiting`).
SLOW_SECONDS = 0.5
# What is sent is counted for at least this long before it is noted.  Only what the first claim of a backlog sends is
# noted at once, as what is sent in this time.
COUNT_SECONDS = 0.1
# A count that goes on for longer began with another backlog.
MOST_SECONDS = 1.0


class LaggingNotes:
    """Notes what a sender's claims find.  are_busy: returns whether the processors are busy.  now: a monotonic clock.

    For one thread.
    """

    def __init__(
        self, are_busy: Callable[[], bool] = processors_are_busy, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._are_busy = are_busy
        self._now = now
        self._counts: Counter[uuid.UUID] = Counter()
        self._began = float("-inf")

    def note(self, claimed: Claim, slow: AbstractSet[uuid.UUID]) -> None:
        """Note the organizations whose queues still have a backlog after a claim, if the processors are busy.

        slow: the subscriptions whose endpoints take their time.
        """
        if not claimed.backlog or not self._are_busy():
            return
        lagging = claimed.backlog - claimed.self_limited - slow
        now = self._now()
        if now - self._began > MOST_SECONDS:
            self._counts.clear()
            self._began = now - COUNT_SECONDS
        self._counts.update(
            delivery.organization_id for delivery in claimed.deliveries if delivery.subscription_id in lagging
        )
        seconds = now - self._began
        if self._counts and seconds >= COUNT_SECONDS:
            note_lagging({organization_id: number / seconds for organization_id, number in self._counts.items()})
            self._counts.clear()
            self._began = now
