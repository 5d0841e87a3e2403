"""`GET /api/inbox` and `GET /api/inbox/stream` on the event loop, where a consumer that waits costs no thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any

from core.front_door.app import Handler
from core.front_door.http import Request, Response, Stream
from core.front_door.stopping import stopping
from core.json_response import dumps
from core.problems import Problem
from core.shared_threads import always
from orgs.front_door import Authenticator, KeyChanged
from orgs.keys import Caller
from orgs.scopes import Scope
from webhooks.api import inbox_requests as requests
from webhooks.api.inbox_requests import InboxQuery
from webhooks.api.inbox_waiting import WaitingRoom
from webhooks.destinations.inbox import log
from webhooks.inboxes import Inbox

# How often, in seconds, a stream sends a sign that it is alive, and reads the log even if nothing was announced.
KEEP_ALIVE_SECONDS = 10.0
# After this many seconds, clients reconnect, which spreads them over the web processes.
STREAM_SECONDS = 3600.0


class InboxDoor:
    """The two routes.  room: a service that has to run while requests are served.

    others_are_served: as for `WaitingRoom`.
    """

    def __init__(
        self, authenticator: Authenticator, others_are_served: Callable[[Hashable], bool] = lambda who: False
    ) -> None:
        self.room = WaitingRoom(others_are_served)
        self._authenticator = authenticator

    def routes(self) -> dict[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        requires = self._authenticator.requires
        return {
            ("GET", "/api/inbox"): requires(Scope.INBOX_CONSUME, self._fetch),
            ("GET", "/api/inbox/stream"): requires(Scope.INBOX_CONSUME, self._stream),
        }

    async def _fetch(self, request: Request, caller: Caller) -> Response:
        query = requests.parse_query(request)
        inbox = await self.room.run(caller, lambda: requests.resolve(request, caller, query.inbox), is_urgent=always)
        if request.input_has_ended:  # a client like `nc` gets what is there; one that has gone needn't wait, either
            query = replace(query, wait=0.0)
        gone = asyncio.ensure_future(request.gone())
        try:
            if query.cursor is not None:
                return await self._read_log(caller, inbox, query, gone)
            lease_id, events = await self.room.fetch(caller, inbox, query, gone)
            return Response(200, dumps(requests.show_fetched(lease_id, events)))
        finally:
            gone.cancel()

    async def _read_log(self, caller: Caller, inbox: Inbox, query: InboxQuery, gone: asyncio.Future[None]) -> Response:
        place = await self.room.run(caller, lambda: requests.begin_log(inbox, query.cursor or ""))
        loop = asyncio.get_running_loop()
        ends = loop.time() + query.wait
        with self.room.listening(caller.organization_id, inbox.id) as arrived:
            while True:
                arrived.clear()
                page = await self.room.run(caller, partial(requests.read_log, inbox, query, place))
                left = min(ends - loop.time(), KEEP_ALIVE_SECONDS)
                if page.events or page.has_more or left <= 0 or stopping.has_begun or gone.done():
                    return Response(200, dumps(requests.show_log(inbox, page)))
                place = page.following
                await _until(left, arrived, gone)

    async def _stream(self, request: Request, caller: Caller) -> Stream:
        query = requests.parse_stream_query(request)
        last = request.header(b"last-event-id")
        inbox = await self.room.run(caller, lambda: requests.resolve(request, caller, query.inbox), is_urgent=always)
        place = await self.room.run(caller, lambda: requests.begin_log(inbox, last or query.cursor or ""))
        return Stream(self._chunks(caller, inbox, query, place))

    async def _chunks(self, caller: Caller, inbox: Inbox, query: InboxQuery, place: log.Place) -> AsyncGenerator[bytes]:
        loop = asyncio.get_running_loop()
        ends = loop.time() + STREAM_SECONDS
        yield requests.stream_begin(inbox, place)
        with self.room.listening(caller.organization_id, inbox.id) as arrived:
            while not stopping.has_begun and loop.time() < ends:
                arrived.clear()
                try:
                    read = partial(requests.read_log, inbox, query, place)
                    page = await self.room.run(caller, read, is_urgent=lambda found: bool(found.events))
                except (KeyChanged, Problem):
                    return  # the next request says why
                if page.events:
                    yield b"".join(requests.stream_event(inbox, event) for event in page.events)
                place = page.following
                if not page.has_more:
                    if not page.events:
                        yield requests.stream_place(inbox, place)
                    await _until(KEEP_ALIVE_SECONDS, arrived)


async def _until(seconds: float, arrived: asyncio.Event, *others: asyncio.Future[None]) -> None:
    """Wait until something arrives, the server stops, one of the others is done, or the time is over."""
    waits: list[asyncio.Task[Any]] = [asyncio.create_task(arrived.wait()), asyncio.create_task(stopping.wait())]
    ends: set[asyncio.Future[Any]] = {*waits, *others}
    try:
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
