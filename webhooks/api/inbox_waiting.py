"""Consumers that wait for events in inboxes, in one web process: each costs memory, but no thread.

Those that wait for the same (an inbox, and types) stand in one line.  When something may have come, one fetch is made
at a time, for the first of the line, until one brings nothing.  So a thousand consumers that wait for an event cost
one fetch, and one that comes to the end of the line costs one.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import psycopg
import structlog
from django.db import Error as DatabaseError

from core.async_redis import AsyncRedis
from core.db import borrow_connection
from core.front_door.stopping import stopping
from core.giving_way import Rests
from core.problems import Problem
from core.shared_threads import SharedThreads, always
from orgs.front_door import KeyChanged
from orgs.keys import Caller, still_may
from orgs.scopes import Scope
from webhooks.api import inbox_requests as requests
from webhooks.api.inbox_requests import InboxQuery
from webhooks.destinations.inbox import fetching
from webhooks.destinations.inbox.arrivals import CHANNEL, announced
from webhooks.destinations.inbox.fetching import FetchedEvent
from webhooks.inboxes import Inbox

log = structlog.get_logger()
T = TypeVar("T")

THREADS = 4
# How often, in seconds, to check whether a lease has ended or an announcement was lost.
LOOK_SECONDS = 1.0
LOOK_AT = 1000
MOST_WAITING = 2000

Lease = tuple[uuid.UUID, list[FetchedEvent]]


class Line(NamedTuple):
    """Consumers that wait for the same: at one inbox, for a type, a prefix, or anything."""

    inbox_id: uuid.UUID
    event_type: str | None


@dataclass(slots=True, eq=False)
class _Waiter:
    """A consumer.  done: its events, or empty when it has waited long enough."""

    caller: Caller
    inbox: Inbox
    query: InboxQuery
    done: asyncio.Future[Lease] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class WaitingRoom:
    """Fetches for consumers, at once or when there is something.  A service of the front door.

    others_are_served: returns whether requests of others than this organization were served lately.  While they are and
    the processors are busy, an organization rests after each fetch that found nothing (`core.shared_threads`).
    """

    def __init__(
        self, others_are_served: Callable[[Hashable], bool] = lambda who: False, rests: Rests | None = None
    ) -> None:
        self._threads = SharedThreads(THREADS, "inbox", others_are_served, rests)
        self._redis = AsyncRedis()
        self._lines: dict[Line, deque[_Waiter]] = {}
        self._stirred: set[Line] = set()  # lines for which something may have come since their last fetch began
        self._pumps: dict[Line, asyncio.Task[None]] = {}
        self._waiting: defaultdict[uuid.UUID, int] = defaultdict(int)
        self._listeners: defaultdict[uuid.UUID, set[asyncio.Event]] = defaultdict(set)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> WaitingRoom:
        self._tasks = [asyncio.create_task(work()) for work in (self._listen, self._look_now_and_then)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in [*self._tasks, *self._pumps.values()]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._redis.close()
        await asyncio.to_thread(self._threads.shutdown)

    async def run(
        self, caller: Caller, work: Callable[[], T], is_urgent: Callable[[T], bool] = lambda found: False
    ) -> T:
        """Return what `work` returns in a thread, if the caller's key still permits it.  Raises KeyChanged.

        is_urgent: returns, from what was found, whether the organization needn't rest after it.
        """

        def checked() -> T:
            if not still_may(caller.key_id, Scope.INBOX_CONSUME):
                raise KeyChanged
            return work()

        return await self._threads.run(caller.organization_id, lambda: borrow_connection(checked), is_urgent)

    async def fetch(self, caller: Caller, inbox: Inbox, query: InboxQuery, gone: asyncio.Future[None]) -> Lease:
        """Lease events as soon as there are any, within `query.wait` seconds; return none if there aren't.

        Raises Problem as soon as the inbox is disabled or deleted.
        gone: done when the client has gone; what is fetched for it then goes back.
        """
        waiter = _Waiter(caller, inbox, query)
        line = Line(inbox.id, query.type)
        with self._place(caller.organization_id):
            self._lines.setdefault(line, deque()).append(waiter)
            self._stir(line)
            try:
                if query.wait:
                    stops = asyncio.create_task(stopping.wait())
                    ends: set[asyncio.Future[Any]] = {waiter.done, gone, stops}
                    try:
                        await asyncio.wait(ends, timeout=query.wait, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        stops.cancel()
                    if not waiter.done.done():
                        self._leave(line, waiter)
                        return uuid.UUID(int=0), []
                return await waiter.done
            finally:
                self._leave(line, waiter)

    @contextlib.contextmanager
    def _place(self, organization_id: uuid.UUID) -> Iterator[None]:
        if self._waiting[organization_id] >= MOST_WAITING:
            raise Problem(
                "too_many_consumers",
                f"{MOST_WAITING} requests of the organization are waiting at its inboxes, which is the limit for a "
                "web process.",
                headers={"Retry-After": "5"},
            )
        self._waiting[organization_id] += 1
        try:
            yield
        finally:
            self._waiting[organization_id] -= 1
            if not self._waiting[organization_id]:
                del self._waiting[organization_id]

    def waiting(self, organization_id: uuid.UUID) -> int:
        """Return how many of the organization's requests are being served here, most of which wait."""
        return self._waiting.get(organization_id, 0)

    @contextlib.contextmanager
    def listening(self, organization_id: uuid.UUID, inbox_id: uuid.UUID) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever something has come into the inbox."""
        with self._place(organization_id):
            arrived = asyncio.Event()
            self._listeners[inbox_id].add(arrived)
            try:
                yield arrived
            finally:
                self._listeners[inbox_id].discard(arrived)
                if not self._listeners[inbox_id]:
                    del self._listeners[inbox_id]

    # --- the lines ----------------------------------------------------------------------------------

    def _leave(self, line: Line, waiter: _Waiter) -> None:
        waiter.done.cancel()
        waiters = self._lines.get(line)
        if waiters is not None:
            with contextlib.suppress(ValueError):
                waiters.remove(waiter)
            if not waiters:
                del self._lines[line]

    def _stir(self, line: Line) -> None:
        """Fetch for the line: something may have come."""
        self._stirred.add(line)
        if line not in self._pumps:
            self._pumps[line] = asyncio.create_task(self._serve(line))

    async def _serve(self, line: Line) -> None:
        try:
            await self._serve_while_stirred(line)
        finally:
            del self._pumps[line]  # before anybody else runs, who would take this task for one that still looks

    async def _serve_while_stirred(self, line: Line) -> None:
        while line in self._stirred:
            self._stirred.discard(line)
            waiters = self._lines.get(line)
            # Those that don't wait get a response in any case.
            hurried = [waiter for waiter in waiters or () if not waiter.query.wait]
            while waiters := self._lines.get(line):
                waiter = waiters.popleft()
                if waiter.done.done():
                    continue
                if await self._serve_one(line, waiter):
                    continue
                if waiter.done.done():
                    continue
                self._lines.setdefault(line, deque()).appendleft(waiter)
                break
            for waiter in hurried:
                if not waiter.done.done():
                    self._leave_with_nothing(line, waiter)
            if not self._lines.get(line):
                self._lines.pop(line, None)

    def _leave_with_nothing(self, line: Line, waiter: _Waiter) -> None:
        waiter.done.set_result((uuid.UUID(int=0), []))
        waiters = self._lines.get(line)
        if waiters is not None:
            with contextlib.suppress(ValueError):
                waiters.remove(waiter)

    async def _serve_one(self, line: Line, waiter: _Waiter) -> bool:
        """Fetch for a consumer; return whether there was anything.  A failure is its own."""
        try:
            fetch = partial(requests.fetch, waiter.inbox, waiter.query)
            lease_id, events = await self.run(waiter.caller, fetch, is_urgent=lambda lease: bool(lease[1]))
        except asyncio.CancelledError:
            waiter.done.cancel()
            raise
        except Problem as error:  # of the inbox, so that all others needn't ask for themselves
            for one in (waiter, *self._lines.pop(line, ())):
                if not one.done.done():
                    one.done.set_exception(error)
            return True
        except Exception as error:
            if not waiter.done.done():
                waiter.done.set_exception(error)
            return True
        if events and waiter.done.done():  # it has gone meanwhile
            ids = [event.delivery_id for event in events]
            with contextlib.suppress(KeyChanged, DatabaseError, psycopg.Error):  # else the lease ends by itself
                take_back = partial(fetching.take_back, line.inbox_id, ids, lease_id)
                await self.run(waiter.caller, take_back, is_urgent=always)
        elif events:
            waiter.done.set_result((lease_id, events))
        return bool(events)

    # --- hearing that something has come -----------------------------------------------------------

    def _arrived(self, inbox_ids: set[uuid.UUID] | None) -> None:
        """Note that these inboxes (None: perhaps any) have new events, or are closed."""
        for line in list(self._lines):
            if inbox_ids is None or line.inbox_id in inbox_ids:
                self._stir(line)
        for inbox_id in list(self._listeners) if inbox_ids is None else inbox_ids:
            for arrived in self._listeners.get(inbox_id, ()):
                arrived.set()

    async def _listen(self) -> None:
        async for message in self._redis.messages(CHANNEL):
            self._arrived(set(announced(message)) if message else None)

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            inboxes = list({line.inbox_id for line in self._lines})
            for start in range(0, len(inboxes), LOOK_AT):
                look = partial(fetching.with_news, inboxes[start : start + LOOK_AT])
                try:
                    found = await self._threads.run(None, partial(borrow_connection, look), is_urgent=always)
                except Exception as error:
                    log.warning("inbox_look_failed", error=repr(error)[:300])
                    break
                for line in list(self._lines):
                    if line.inbox_id in found:
                        self._stir(line)
