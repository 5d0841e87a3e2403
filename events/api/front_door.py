"""`POST /api/events` and `POST /api/events/batch` on the event loop.

The same steps as in `views`, with the same functions, except that the events of many requests share a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from core.db import borrow_connection
from core.front_door.app import Handler
from core.front_door.http import Request, Response
from core.json_response import dumps
from core.problems import Problem
from core.ratelimits import RateLimitDecision
from core.redis import RedisUnavailable
from core.url_prefix import path_below
from core.wakeups import EVENTS, SIGNAL, wake_soon
from events import backlog, event_types, rate
from events.api.body_formats import Reading, reading_of_batch, reading_of_event
from events.api.receipts import (
    Receipt,
    batch_receipt,
    receipt,
    validate_only,
    validated_batch_receipt,
    validated_receipt,
)
from events.cloudevents import MARKS
from events.group_commit import Counted, GroupCommit, PendingResponse
from events.idempotent_commit import IdempotentCommit
from events.ingest import Ingested
from events.ingest_log import count_conflicts, count_events, failure_logged, log_result
from events.origin import origin_of
from events.pacing import Pacing
from events.payload import NewEvent
from events.tracing import traced
from orgs.front_door import Authenticator
from orgs.idempotency import REPLAYED, REUSED, RUNNING, Kept, Once, fingerprint, parse_key
from orgs.keys import Caller
from orgs.models import Strictness
from orgs.scopes import Scope

EVENTS_ROUTE = "/api/events"
BATCH_ROUTE = "/api/events/batch"
# Pause between two signals of this process.
SHARE_SECONDS = 0.002
# Problems of requests that are refused because of what was stored before.
_CONFLICTS = {REUSED, RUNNING, "dedup_conflict"}
NO_HEADERS: Mapping[str, str] = {}
_MARKS = frozenset(name.encode() for name in MARKS)


@dataclass(slots=True)
class _Progress:
    """How far a request has come: it starts over when its key is changed meanwhile.

    content: what makes two requests with an `Idempotency-Key` the same; None before the body has been read.
    is_offered: it was passed on to be stored, and its idempotency key looked up.
    """

    counted: Counted = field(default_factory=Counted)
    content: bytes | None = None
    is_offered: bool = False


def _progress(request: Request) -> _Progress:
    progress = request.progress
    if not isinstance(progress, _Progress):
        progress = request.progress = _Progress()
    return progress


class EventsDoor:
    """The two routes.  services: have to run while requests are served.

    group_commit: makes what stores the events of requests without an `Idempotency-Key`, from its `on_accepted`.
    """

    def __init__(self, group_commit: Callable[[Callable[[], None]], GroupCommit] = GroupCommit) -> None:
        self.commits = group_commit(self._signal)
        self.idempotent_commits = IdempotentCommit(self._signal)
        self.authenticator = Authenticator()
        self._signal_wanted = False
        self._signaling: asyncio.Task[None] | None = None
        self._pacing = Pacing()
        self._looking: asyncio.Future[None] | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="lookups")  # for what reads the database

    @property
    def services(self) -> tuple[GroupCommit, ...]:
        return self.commits, self.idempotent_commits

    def routes(self) -> dict[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        requires = self.authenticator.requires
        return {
            ("POST", EVENTS_ROUTE): requires(Scope.EVENTS_WRITE, self._once(self._accept_event)),
            ("POST", BATCH_ROUTE): requires(Scope.EVENTS_WRITE, self._once(self._accept_batch)),
        }

    async def _accept_event(self, request: Request, caller: Caller) -> Response:
        started = time.perf_counter()
        only_validate = bool(request.scope["query_string"]) and validate_only(request)
        headers = None if _MARKS.isdisjoint(request.headers) else request.decoded_headers()
        reading = reading_of_event(request.header(b"content-type"), headers)
        if reading.is_batch:
            return await self._accept_items(request, EVENTS_ROUTE, caller, reading, started)
        body = await request.read_decompressed(reading.limit)
        _progress(request).content = reading.content(body)
        event = reading.event(body)
        if caller.strictness != Strictness.FREE and (errors := (await self._check(caller, [event]))[0]):
            raise event_types.refused(errors)
        if only_validate:
            return _response(_kept(validated_receipt(event)))
        return await self._store(request, EVENTS_ROUTE, caller, [event], started, lambda results: receipt(results[0]))

    async def _accept_batch(self, request: Request, caller: Caller) -> Response:
        started = time.perf_counter()
        reading = reading_of_batch(request.header(b"content-type"))
        return await self._accept_items(request, BATCH_ROUTE, caller, reading, started)

    async def _accept_items(
        self, request: Request, route: str, caller: Caller, reading: Reading, started: float
    ) -> Response:
        only_validate = bool(request.scope["query_string"]) and validate_only(request)
        body = await request.read_decompressed(reading.limit)
        _progress(request).content = reading.content(body)
        items = reading.items(body)
        valid = [item for item in items if isinstance(item, NewEvent)]
        if caller.strictness != Strictness.FREE and valid:
            items = event_types.replace_refused(items, await self._check(caller, valid))
            valid = [item for item in items if isinstance(item, NewEvent)]
        if only_validate:
            return _response(_kept(validated_batch_receipt(items)))
        invalid = len(items) - len(valid)
        return await self._store(
            request, route, caller, valid, started, lambda results: batch_receipt(items, results), invalid
        )

    def _once(
        self, serve: Callable[[Request, Caller], Awaitable[Response]]
    ) -> Callable[[Request, Caller], Awaitable[Response]]:
        """Return a handler that is served once for each `Idempotency-Key`."""

        async def handle(request: Request, caller: Caller) -> Response:
            if b"idempotency-key" not in request.headers or (request.scope["query_string"] and validate_only(request)):
                return await serve(request, caller)
            parse_key(request.header(b"idempotency-key"))
            _progress(request).is_offered = False
            try:
                return await serve(request, caller)
            except Problem as problem:
                # A request that was served before gets the same response even if it would be refused now.
                once = _once_of(request, caller)
                if once is None or _progress(request).is_offered:  # its body wasn't read, or its key was looked up
                    raise
                return await self._replay(caller, once, request, problem)

        return handle

    async def _replay(self, caller: Caller, once: Once, request: Request, problem: Problem) -> Response:
        """Return the response that is kept under a request's key; raise `problem` if there is none."""

        def refuse(_results: Sequence[Ingested]) -> Kept:
            raise problem

        pending = PendingResponse(once, refuse)
        _, decision = await self.idempotent_commits.accept(
            caller, [], _progress(request).counted, pending_response=pending
        )
        if pending.response is None:
            raise problem
        return _replayed(pending.response, decision)

    async def _store(
        self,
        request: Request,
        route: str,
        caller: Caller,
        events: Sequence[NewEvent],
        started: float,
        receive: Callable[[Sequence[Ingested]], Receipt],
        invalid: int = 0,
    ) -> Response:
        """Store the events of a request, and return the response.

        receive: makes the receipt of what became of each event.  invalid: how many others the request had.
        """
        once = _once_of(request, caller)
        if once is None and not events:
            count_events([], invalid)
            return _response(_kept(receive([])))
        if events:
            rate.require_possible(caller, len(events))
            await self._require_room(caller, len(events))
            if pause := self._pause(caller, len(events)):
                await asyncio.sleep(pause)
        origin = origin_of(request.request_id, request.header(b"traceparent"), request.header(b"tracestate"))
        pending = None if once is None else PendingResponse(once, lambda results: _kept(receive(results)))
        commits = self.commits if pending is None else self.idempotent_commits

        def is_replay() -> bool:
            return pending is not None and pending.is_replayed

        with (
            failure_logged(caller.organization_id, events, started),
            traced(origin, route, caller.organization_id, events, started, is_replay) as origin,
        ):
            progress = _progress(request)
            progress.is_offered = True
            try:
                results, decision = await commits.accept(caller, events, progress.counted, origin, pending)
            except Problem as problem:
                if problem.code in _CONFLICTS:
                    count_conflicts(len(events))
                raise
        kept = pending.response if pending is not None else None
        if kept is not None and is_replay():
            return _replayed(kept, decision)
        headers = rate.headers(decision)
        count_events(results, invalid)
        for event, result in zip(events, results, strict=True):
            log_result(caller.organization_id, event, result, started)
        return _response(kept or _kept(receive(results)), headers)

    async def _check(self, caller: Caller, events: Sequence[NewEvent]) -> list[event_types.FieldErrors]:
        """Return what is wrong with each event by the organization's catalog; reads types that aren't remembered."""
        catalog = event_types.catalog
        if missing := catalog.missing(caller, events):
            await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: borrow_connection(lambda: catalog.load(caller, missing))
            )
        return catalog.check(caller, events)

    def _signal(self) -> None:
        """Tell the workers about new events: at once by the signal, and with an RQ job."""
        self._signal_wanted = True
        if self._signaling is None or self._signaling.done():
            self._signaling = asyncio.create_task(self._send_signals())
        wake_soon(EVENTS, signal=False)

    async def _send_signals(self) -> None:
        while self._signal_wanted:
            self._signal_wanted = False  # before it is sent: what is committed after that needs another one
            with contextlib.suppress(RedisUnavailable):  # then the sweep finds the events
                await self.commits.redis.run([SIGNAL])
            await asyncio.sleep(SHARE_SECONDS)  # what is committed meanwhile shares the next one

    async def _require_room(self, caller: Caller, events: int) -> None:
        """Do as `backlog.require_room`, with the counts made in a thread."""
        organization_id = caller.organization_id
        if backlog.estimate.is_stale(organization_id):
            stale = backlog.estimate.begin_refresh(organization_id)
            count = asyncio.get_running_loop().run_in_executor(
                self._threads,
                lambda: borrow_connection(lambda: backlog.estimate.finish_refresh(organization_id, stale)),
            )
            if backlog.estimate.is_recent(organization_id):
                count.add_done_callback(_ignore_failure)  # if the database is away, storing the events fails, too
            else:
                await count
        problem = backlog.estimate.add(organization_id, events)
        if problem is not None:
            raise problem

    def _pause(self, caller: Caller, events: int) -> float:
        """Return how long to pause before a request of an organization whose earlier events the workers haven't
        processed yet, in seconds."""
        if (self._looking is None or self._looking.done()) and self._pacing.wants_look():
            self._looking = asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: borrow_connection(self._pacing.look)
            )
            self._looking.add_done_callback(_ignore_failure)
        return self._pacing.pause(caller.organization_id, events)


def _once_of(request: Request, caller: Caller) -> Once | None:
    """Return the idempotency key of a request with its content; None without a key, or before its body has been
    read."""
    if b"idempotency-key" not in request.headers or (body := _progress(request).content) is None:
        return None
    content = fingerprint("POST", path_below(request.scope["path"]), body, b"")
    key = parse_key(request.header(b"idempotency-key"))
    return Once(caller.organization_id, key, content, caller.key_id, Scope.EVENTS_WRITE.value)


def _kept(receipt: Receipt) -> Kept:
    return Kept(receipt.status, receipt.location, dumps(receipt.document))


def _replayed(kept: Kept, decision: RateLimitDecision | None) -> Response:
    return _response(kept, {**rate.headers(decision, rate.REPLAYS), **REPLAYED})


def _response(kept: Kept, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    location = {"Location": kept.location} if kept.location else {}
    return Response(kept.status, kept.body, headers={**location, **headers})


def _ignore_failure(done: asyncio.Future[None]) -> None:
    if not done.cancelled():
        done.exception()
