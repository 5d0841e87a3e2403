"""`POST /api/events` and `POST /api/events/batch` on the event loop.

The same steps as in `views`, with the same functions, except that the events of many requests share a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings

from core.db import borrow_connection
from core.front_door.app import Handler
from core.front_door.http import Request, Response
from core.json_response import dumps
from core.redis import RedisUnavailable
from core.wakeups import EVENTS, SIGNAL, wake_soon
from events import backlog, event_types, rate
from events.api.receipts import (
    accepted_count,
    batch_receipt,
    checked,
    checked_batch,
    count_events,
    failure_logged,
    log_result,
    receipt,
    validate_only,
)
from events.group_commit import GroupCommit
from events.ingest import Ingested
from events.origin import origin_of
from events.pacing import Pacing
from events.payload import NewEvent, parse_batch, parse_event
from events.tracing import traced
from orgs.front_door import Authenticator
from orgs.keys import Caller
from orgs.models import Scope, Strictness

EVENTS_ROUTE = "/api/events"
BATCH_ROUTE = "/api/events/batch"
# Pause between two signals of this process.
SHARE_SECONDS = 0.002


class EventsDoor:
    """The two routes.  commits: a service that has to run while requests are served."""

    def __init__(self) -> None:
        self.commits = GroupCommit()
        self.authenticator = Authenticator()
        self._signal_wanted = False
        self._signaling: asyncio.Task[None] | None = None
        self._pacing = Pacing()
        self._looking: asyncio.Future[None] | None = None
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="backlog")

    def routes(self) -> dict[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        requires = self.authenticator.requires
        return {
            ("POST", EVENTS_ROUTE): requires(Scope.EVENTS_WRITE, self._accept_event),
            ("POST", BATCH_ROUTE): requires(Scope.EVENTS_WRITE, self._accept_batch),
        }

    async def _accept_event(self, request: Request, caller: Caller) -> Response:
        started = time.perf_counter()
        only_validate = bool(request.scope["query_string"]) and validate_only(request)
        body, _ = await request.read_json(settings.MAX_EVENT_BYTES, "application/json")
        event = parse_event(body)
        if caller.strictness != Strictness.FREE and (errors := (await self._check(caller, [event]))[0]):
            raise event_types.refused(errors)
        if only_validate:
            return Response(200, dumps(checked()))
        results, headers = await self._store(request, EVENTS_ROUTE, caller, [event], started)
        count_events(results)
        status, document, location = receipt(results[0])
        return Response(status, dumps(document), headers={**location, **headers})

    async def _accept_batch(self, request: Request, caller: Caller) -> Response:
        started = time.perf_counter()
        only_validate = bool(request.scope["query_string"]) and validate_only(request)
        body, media_type = await request.read_json(settings.MAX_BATCH_BYTES, "application/json", "application/x-ndjson")
        items = parse_batch(
            body,
            ndjson=media_type == "application/x-ndjson",
            max_events=settings.MAX_BATCH_EVENTS,
            max_event_bytes=settings.MAX_EVENT_BYTES,
        )
        valid = [item for item in items if isinstance(item, NewEvent)]
        if caller.strictness != Strictness.FREE and valid:
            items = event_types.replace_refused(items, await self._check(caller, valid))
            valid = [item for item in items if isinstance(item, NewEvent)]
        if only_validate:
            return Response(200, dumps(checked_batch(items)))
        results: list[Ingested] = []
        headers: dict[str, str] = {}
        if valid:
            results, headers = await self._store(request, BATCH_ROUTE, caller, valid, started)
        status, document = batch_receipt(items, results)
        return Response(status, dumps(document), headers=headers)

    async def _store(
        self, request: Request, route: str, caller: Caller, events: Sequence[NewEvent], started: float
    ) -> tuple[list[Ingested], dict[str, str]]:
        """Store the events of a request and wake the workers; return what became of each, and the rate's headers."""
        rate.require_possible(caller, len(events))
        await self._require_room(caller, len(events))
        origin = origin_of(request.request_id, request.header(b"traceparent"), request.header(b"tracestate"))
        await self._pace(caller)
        with (
            failure_logged(caller.organization_id, events, started),
            traced(origin, route, caller.organization_id, events, started) as origin,
        ):
            results, decision = await self.commits.accept(caller, events, request.memo, origin)
        if accepted_count(results):
            self._signal()
        for event, result in zip(events, results, strict=True):
            log_result(caller.organization_id, event, result, started)
        return results, rate.headers(decision)

    async def _check(self, caller: Caller, events: Sequence[NewEvent]) -> list[event_types.FieldErrors]:
        """Return what is wrong with each event by the organization's catalog; what isn't remembered of it is read."""
        catalog = event_types.catalog
        if missing := catalog.missing(caller, events):
            await asyncio.get_running_loop().run_in_executor(
                self._counting, lambda: borrow_connection(lambda: catalog.load(caller, missing))
            )
        return catalog.check(caller, events)

    def _signal(self) -> None:
        """Tell the workers of new events: at once by the signal, and by an RQ job."""
        wake_soon(EVENTS, signal=False)
        self._signal_wanted = True
        if self._signaling is None or self._signaling.done():
            self._signaling = asyncio.create_task(self._send_signals())

    async def _send_signals(self) -> None:
        while self._signal_wanted:
            self._signal_wanted = False  # before it is sent: what is committed after that needs another one
            with contextlib.suppress(RedisUnavailable):  # then the sweep finds the events
                await self.commits.redis.run(SIGNAL)
            await asyncio.sleep(SHARE_SECONDS)  # what is committed meanwhile shares the next one

    async def _require_room(self, caller: Caller, events: int) -> None:
        """Do as `backlog.require_room`, with the counts made in a thread."""
        organization_id = caller.organization_id
        if backlog.estimate.is_stale(organization_id):
            count = asyncio.get_running_loop().run_in_executor(
                self._counting, lambda: borrow_connection(lambda: backlog.estimate.refresh(organization_id))
            )
            if backlog.estimate.is_known(organization_id):
                count.add_done_callback(_ignore_failure)  # if the database is away, storing the events fails, too
            else:
                await count
        problem = backlog.estimate.add(organization_id, events)
        if problem is not None:
            raise problem

    async def _pace(self, caller: Caller) -> None:
        """Wait before a request of an organization whose earlier events the workers can't keep up with."""
        if (self._looking is None or self._looking.done()) and self._pacing.wants_look():
            self._looking = asyncio.get_running_loop().run_in_executor(
                self._counting, lambda: borrow_connection(self._pacing.look)
            )
            self._looking.add_done_callback(_ignore_failure)
        if pause := self._pacing.pause(caller.organization_id):
            await asyncio.sleep(pause)


def _ignore_failure(done: asyncio.Future[None]) -> None:
    if not done.cancelled():
        done.exception()
