"""Requests to an endpoint that somebody waits for: a test event, a handshake.

Each holds one of the web process's threads for as long as the endpoint takes.  So an organization can make one at a
time in each process, and all organizations together leave half of the threads to other requests.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import transaction

from core import ratelimits
from webhooks.destinations.http.destination import HttpDestination
from webhooks.destinations.outcome import Failure, Outcome

MAX_SECONDS = 10.0
GRACE_SECONDS = 1.0


class TooManyProbes(Exception):
    """The organization has sent too many in a minute, or one is under way.  retry_after: in seconds."""

    def __init__(self, sentence: str, retry_after: int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.retry_after = retry_after


class Places:
    """Which organizations hold a thread of this process: one place for each, and a bounded number in total."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[uuid.UUID] = set()

    @contextmanager
    def place(self, organization_id: uuid.UUID) -> Iterator[None]:
        """Hold the organization's place.  Raises TooManyProbes."""
        with self._lock:
            if organization_id in self._taken:
                raise TooManyProbes("Another test event or handshake of the organization is being sent; try again.", 1)
            # At least two, so that one organization never takes the last.
            if len(self._taken) >= max(2, settings.WEB_THREADS // 2):
                raise TooManyProbes("The test events and handshakes of others are being sent; try again.", 5)
            self._taken.add(organization_id)
        try:
            yield
        finally:
            with self._lock:
                self._taken.discard(organization_id)


places = Places()


def probe(
    organization_id: uuid.UUID,
    policy: str,
    per_minute: int,
    send: Callable[[HttpDestination], Awaitable[Outcome]],
) -> Outcome:
    """Make a request under the rules that hold for webhooks, and wait for its outcome, at most MAX_SECONDS.

    policy: what the organization may do so often a minute, in words.  Raises TooManyProbes, and RuntimeError in a
    transaction, which would be open for as long as the endpoint takes.
    """
    with transaction.atomic(durable=True):
        pass
    decision = ratelimits.hit(policy.replace(" ", "-"), str(organization_id), per_minute)
    if not decision.allowed:
        sentence = f"The organization may send {per_minute} {policy} a minute."
        raise TooManyProbes(sentence, max(1, decision.reset_seconds))
    with places.place(organization_id):
        return asyncio.run(_send(send))


async def _send(send: Callable[[HttpDestination], Awaitable[Outcome]]) -> Outcome:
    seconds = min(MAX_SECONDS, settings.DELIVERY_TIMEOUT)
    destination = HttpDestination(seconds)
    try:
        # The destination reports what took so long: the endpoint or the token.  This timeout is for what it doesn't
        # bound.
        async with asyncio.timeout(seconds + GRACE_SECONDS):
            return await send(destination)
    except TimeoutError:
        return Outcome(failure=Failure.TIMEOUT, detail=f"No outcome within {seconds:g} s.")
    finally:
        await destination.aclose()
