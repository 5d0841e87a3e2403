"""The two functions that RQ jobs name.  They carry no data: what there is to do stands in the database."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

import structlog
from cachetools import TTLCache
from django.conf import settings

from core.db import borrow_connection, is_transient
from core.processor_load import processors_are_busy
from core.wakeups import EVENTS, WEBHOOKS, wake
from webhooks.dispatch.hand_over import SenderHandOver
from webhooks.dispatch.sender import Sender, current_sender
from webhooks.routing.fan_out import PUT_OFF_SECONDS, FanOut

log = structlog.get_logger()

# A job hands its worker back after this long; the other queue gets its turn.
SLICE_SECONDS = 0.25
# While the processors are busy, a round waits this long for more events if the last one had so many.
GATHER_FROM = 6
GATHER_SECONDS = 0.005
# How long a job drains a sender of its own, in a worker class without one.
DRAIN_SECONDS = 10.0

_fanned_out_at = float("-inf")
LEFT_TO_BACKLOG_SECONDS = 1.0
BACKLOGGED_SECONDS = 10.0


class _FanOutState(threading.local):
    """A thread's fan-out: the job loop has one, and so has the housekeeping thread, which steps in without Redis.

    left_to_backlog: organizations whose events the backlog sender's process fans out; this process looks at them
    again after a while.  backlogged: those that were left to it lately, which get small rounds here: one event for a
    thousand subscriptions once a second would delay everybody's events by its round.
    """

    def __init__(self) -> None:
        self.fan_out = FanOut()
        self.seen_before = 0  # how many events the last round had
        self.left_to_backlog: TTLCache[uuid.UUID, bool] = TTLCache(maxsize=1_000, ttl=LEFT_TO_BACKLOG_SECONDS)
        self.backlogged: TTLCache[uuid.UUID, bool] = TTLCache(maxsize=1_000, ttl=BACKLOGGED_SECONDS)
        self._hand_over: tuple[Sender, SenderHandOver] | None = None

    def hand_over_to(self, sender: Sender | None) -> SenderHandOver | None:
        """Return this thread's hand-over to the sender."""
        if sender is None:
            return None
        if self._hand_over is None or self._hand_over[0] is not sender:
            self._hand_over = sender, SenderHandOver(sender)
        return self._hand_over[1]


_state = _FanOutState()


class OneThreadAtATime:
    """Lets one thread of this process work at a time; what the others ask for meanwhile is done in one go afterward.

    Two fan-outs side by side take the interpreter from each other, and each has half as many events to share its cost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_running = self._is_asked_again = False

    def run(self, work: Callable[[], bool], seconds: float) -> bool:
        """Run `work`, again while others ask for it, for about `seconds`; return whether work is left.

        Returns False at once while another thread is at it: that thread runs `work` again from the beginning.
        """
        ends = time.monotonic() + seconds
        with self._lock:
            if self._is_running:
                self._is_asked_again = True
                return False
            self._is_running = True
        try:
            while True:
                with self._lock:
                    self._is_asked_again = False
                left = work()
                with self._lock:
                    if left or not self._is_asked_again or time.monotonic() >= ends:
                        left = left or self._is_asked_again
                        self._is_running = False
                        return left
        except BaseException:
            with self._lock:
                self._is_running = False
            raise


_one_thread = OneThreadAtATime()


def last_fan_out() -> float:
    """Return when this process last fanned out events, by the monotonic clock; -inf for never."""
    return _fanned_out_at


def process_events(borrow: Callable[[Callable[[], bool]], bool] = borrow_connection) -> None:
    """Fan out accepted events for a slice of time; enqueue the next slice while work is left.

    While the database is away nothing is done: the sweep wakes this queue again when it is back.

    borrow: runs work with a database connection.
    """
    try:
        left = borrow(lambda: _one_thread.run(lambda: fan_out_for(SLICE_SECONDS), SLICE_SECONDS))
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("fan_out_waits", error=repr(error)[:300])
        return
    if left:
        wake(EVENTS)


def fan_out_for(seconds: float) -> bool:
    """Fan out while events wait, for at most `seconds`, and return whether work may be left."""
    global _fanned_out_at
    ends = time.monotonic() + seconds
    while True:
        _fanned_out_at = time.monotonic()
        if _state.seen_before >= GATHER_FROM and processors_are_busy():
            time.sleep(GATHER_SECONDS)
        sender = current_sender()
        result = _state.fan_out.run_round(
            settings.MAX_CONCURRENT_EVENTS,
            list(_state.left_to_backlog),
            _state.hand_over_to(sender),
            backlogged=list(_state.backlogged),
        )
        _state.seen_before = result.seen
        if result.left_behind and sender is not None and sender.take_over_fan_out():
            _state.left_to_backlog.update(dict.fromkeys(result.left_behind, True))
            _state.backlogged.update(dict.fromkeys(result.left_behind, True))
        elif result.left_behind:
            _state.backlogged.clear()  # nobody else takes them
        if result.left_to_claims and sender is not None:
            sender.wake(backlog=False)
        if result.left_to_claims and (sender is None or not sender.has_room()):
            wake(WEBHOOKS)  # for the other workers
        if result.put_off:
            _wake_later()
        # Of what comes after this round, its own wake-up tells.
        if not result.more:
            return False
        if time.monotonic() >= ends:
            return True


def _wake_later() -> None:
    """Have events that were put off fanned out as soon as they are due; the sweep, too, would find them."""
    later = threading.Timer(PUT_OFF_SECONDS, wake, [EVENTS])
    later.daemon = True
    later.start()


def deliver_webhooks() -> None:
    """Tell this worker's sender that deliveries are due.

    In a worker class without one, a sender is started for this job and drained.
    """
    sender = current_sender()
    if sender is not None:
        sender.wake()
        return
    temporary = Sender(settings.MAX_CONCURRENT_DELIVERIES, settings.SWEEP_INTERVAL)
    temporary.start()
    temporary.wake()
    temporary.wait_until_drained(DRAIN_SECONDS)
    temporary.stop(settings.DELIVERY_TIMEOUT)
