"""Notes which organizations' deliveries lag because the processors are busy, so that their requests are paced.

A queue whose endpoint takes its time is not the processors' fault, and neither is one of a subscription with a rate
limit, a limit on requests in flight, or ordering keys: nobody's requests wait for those.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping

from cachetools import TTLCache

from core.processor_load import processors_are_busy, seconds_with_waiting
from events.lagging import note_lagging
from webhooks.dispatch.in_flight import InFlight

# The endpoint of a subscription with a request in flight for longer than this takes its time.  A process that waits for
# processors sees responses later, and takes more for it (`core.processor_load.seconds_with_waiting`).
SLOW_SECONDS = 0.5
# An organization is noted again after this, if its deliveries still lag.
AGAIN_SECONDS = 0.1
# The least rate that is noted, in deliveries per second: a sender that has just begun has no rate yet.
LEAST_RATE = 100.0


class LaggingNotes:
    """Notes what a sender's claims find.  For one thread.

    in_flight: the sender's.  are_busy: returns whether the processors are busy.  now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        in_flight: InFlight,
        are_busy: Callable[[], bool] = processors_are_busy,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._in_flight = in_flight
        self._are_busy = are_busy
        self._noted: TTLCache[uuid.UUID, bool] = TTLCache(1_000, AGAIN_SECONDS, timer=now)

    def note(self, lagging: Mapping[uuid.UUID, uuid.UUID]) -> None:
        """Note the organizations of lagging subscriptions (`Claim.lagging`), if the processors are busy."""
        if not lagging or not self._are_busy():
            return
        slow = self._in_flight.slow_subscriptions(seconds_with_waiting(SLOW_SECONDS))
        found = {lagging[one] for one in lagging.keys() - slow} - self._noted.keys()
        if found:
            note_lagging({one: max(LEAST_RATE, self._in_flight.rate(one)) for one in found})
            self._noted.update(dict.fromkeys(found, True))
