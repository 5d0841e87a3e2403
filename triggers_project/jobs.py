"""The two functions that RQ jobs name.  They carry no data: what there is to do stands in the database."""

from __future__ import annotations

import time

import structlog
from django.conf import settings

from core.db import borrow_connection, is_transient
from core.wakeups import EVENTS, WEBHOOKS, wake
from webhooks.dispatch.sender import Sender, current_sender
from webhooks.routing.fan_out import fan_out_batch

log = structlog.get_logger()

# A job hands its worker back after this long; the other queue gets its turn.
SLICE_SECONDS = 0.25
# Between two looks, events that trickle in are gathered for this long: a look and its commit cost the same
# for one event as for a hundred, and a job of its own costs more than both.
GATHER_SECONDS = 0.01

_fanned_out_at = float("-inf")


def last_fan_out() -> float:
    """Return when this process last fanned out events, by the monotonic clock; -inf for never."""
    return _fanned_out_at


def process_events() -> None:
    """Fan out accepted events for a slice of time; enqueue the next slice while work is left.

    While the database is away nothing is done: the sweep wakes this queue again when it is back.
    """
    try:
        left = borrow_connection(lambda: fan_out_for(SLICE_SECONDS))
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("fan_out_waits", error=repr(error)[:300])
        return
    if left:
        wake(EVENTS)


def fan_out_for(seconds: float) -> bool:
    """Fan out while events come, for `seconds` at the most, and tell whether work may be left."""
    global _fanned_out_at
    ends = time.monotonic() + seconds
    while True:
        _fanned_out_at = time.monotonic()
        seen = fan_out_batch(settings.MAX_CONCURRENT_EVENTS)
        sender = current_sender()
        if seen and sender is not None:
            sender.wake(backlog=False)
        if seen and (sender is None or not sender.has_room()):
            wake(WEBHOOKS)  # for the other workers
        if not seen:
            return False
        if time.monotonic() >= ends:
            return True
        if seen < settings.MAX_CONCURRENT_EVENTS:
            time.sleep(GATHER_SECONDS)


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
    temporary.wait_until_drained(SLICE_SECONDS * 40)
    temporary.stop(settings.DELIVERY_TIMEOUT)
