"""Whether deliveries may be due that no claim has seen, as one state that a sender's parts share."""

from __future__ import annotations

import threading
from enum import Enum


class ClaimState(Enum):
    """The state of a sender's claims.

    PENDING: something happened that no claim has seen yet: a wake-up, or a result that made room.
    CLAIMING: a claim is under way.
    LEFT_BEHIND: the last claim may have left something, because it had no room or others held the locks.
    CAUGHT_UP: the last claim saw everything.
    """

    PENDING = "pending"
    CLAIMING = "claiming"
    LEFT_BEHIND = "left_behind"
    CAUGHT_UP = "caught_up"


class ClaimProgress:
    """A sender's claim state, and whether the sender is drained: caught up, with nothing in flight.

    `request` may be called from any thread, the other methods from the sender's event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = ClaimState.PENDING
        self._requests = 0
        self._requests_seen = 0
        self._drained = threading.Event()

    @property
    def state(self) -> ClaimState:
        """The state of the claims."""
        return self._state

    def request(self) -> None:
        """Note that deliveries may be due that no claim has seen."""
        with self._lock:
            self._requests += 1
            self._drained.clear()
            if self._state is not ClaimState.CLAIMING:
                self._state = ClaimState.PENDING

    def claim_begins(self) -> None:
        """Note that a claim begins: it sees whatever was requested until now."""
        with self._lock:
            self._requests_seen = self._requests
            self._state = ClaimState.CLAIMING

    def claim_ended(self, left_something: bool) -> None:
        """Note that the claim has ended, and whether it may have left something that is due."""
        with self._lock:
            if self._requests != self._requests_seen:
                self._state = ClaimState.PENDING
            else:
                self._state = ClaimState.LEFT_BEHIND if left_something else ClaimState.CAUGHT_UP

    def may_have_missed_room(self) -> bool:
        """Return whether another claim could use the room that has just become free."""
        return self._state in {ClaimState.CLAIMING, ClaimState.LEFT_BEHIND}

    def work_began(self) -> None:
        """Note that a delivery is in flight."""
        self._drained.clear()

    def check_drained(self, in_work: int) -> None:
        """Wake those who wait for a drained sender, if it is drained. in_work: deliveries in flight or not recorded
        yet."""
        with self._lock:
            if self._state is ClaimState.CAUGHT_UP and not in_work:
                self._drained.set()

    def end(self) -> None:
        """Wake everybody who waits: the sender has ended."""
        self._drained.set()

    def wait_until_drained(self, timeout: float | None) -> bool:
        """Wait until the sender is drained or has ended; False if `timeout` seconds passed first."""
        return self._drained.wait(timeout)
