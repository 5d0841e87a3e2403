"""Accepts the events of many requests with one commit.

Whatever arrives while a commit is under way goes into the next one.  An idle system adds no wait: a request that comes
alone is committed alone, at once.  Where several came, the next commit first takes those whose bytes are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import psycopg
import structlog
from django.conf import settings
from psycopg.rows import class_row

from core.arrays import bytes_array, plain_array, text_array
from core.async_postgresql import AsyncConnection
from core.async_redis import AsyncRedis
from core.ids import new_ids
from core.ratelimits import Demand, RateLimitDecision, ReservingCounter
from events.channels import join
from events.ingest import Ingested, IngestStatus
from events.insert_statement import insert_events
from events.origin import NO_ORIGIN, Origin
from events.payload import NewEvent
from events.rate import POLICY, over_limit
from orgs.front_door import KeyChanged
from orgs.idempotency import Kept, Once
from orgs.keys import Caller
from orgs.scopes import Scope

log = structlog.get_logger()

# The limits of one commit.  A request is never split, so a batch may exceed them.
MOST_EVENTS = 1000
MOST_BYTES = 4_000_000
# With so many requests, a commit waits for no more of them.
ENOUGH_REQUESTS = 64

INSERT = insert_events()

# The events that dedup ids stand for; pairs of columns, which the ORM can't look up together.  The LIMIT makes it one
# look-up for each, even if the plan comes from a time when the table was small.
_FIND_HOLDERS = """
SELECT k.organization_id, k.dedup_id, k.event_id, k.fingerprint
FROM unnest(%(organization_ids)s::uuid[], %(dedup_ids)s::text[]) AS wanted(organization_id, dedup_id)
CROSS JOIN LATERAL (
    SELECT * FROM events_dedupkey
    WHERE organization_id = wanted.organization_id AND dedup_id = wanted.dedup_id LIMIT 1
) AS k
"""


@dataclass(frozen=True, slots=True)
class NotStored:
    """A row of INSERT: an event that wasn't stored, and whether its key still permits it."""

    id: uuid.UUID
    permitted: bool


@dataclass(frozen=True, slots=True)
class _Holder:
    """A row of _FIND_HOLDERS: the event that a dedup id stands for."""

    organization_id: uuid.UUID
    dedup_id: str
    event_id: uuid.UUID
    fingerprint: bytes


@dataclass(slots=True, eq=False)
class PendingEvent:
    """An event that is about to be stored.

    result: None until it is decided.  is_processed: it was stored as processed, and the workers needn't look at it.
    """

    request: PendingRequest
    id: str
    event: NewEvent
    fingerprint: bytes | None
    result: Ingested | None = None
    is_processed: bool = False

    @property
    def dedup_key(self) -> tuple[uuid.UUID, str] | None:
        return None if self.event.dedup_id is None else (self.request.caller.organization_id, self.event.dedup_id)


@dataclass(slots=True)
class Counted:
    """Whether a request was counted against a rate limit and is within it, and what that limit said.

    It stays with the request, so that it counts once, however often its key changes while it is served.
    """

    is_counted: bool = False
    decision: RateLimitDecision | None = None


@dataclass(slots=True)
class PendingResponse:
    """The response to a request with an `Idempotency-Key`, for `events.idempotent_commit`.

    make: makes the response of what became of the events; may raise Problem, which nothing is kept of.  response: when
    it is known.  is_replayed: it was made for an earlier request.
    """

    once: Once
    make: Callable[[Sequence[Ingested]], Kept]
    response: Kept | None = None
    is_replayed: bool = False


@dataclass(slots=True, eq=False)
class PendingRequest:
    """The events of one request.

    error: why it was refused.  is_held: it isn't told so yet, because the transaction that found it out has to end.
    """

    caller: Caller
    origin: Origin
    counted: Counted
    done: asyncio.Future[list[Ingested]]
    pending_response: PendingResponse | None = None
    items: list[PendingEvent] = field(default_factory=list)
    size: int = 0
    error: BaseException | None = None
    is_held: bool = False

    def results(self) -> list[Ingested]:
        """Return the results of the events, as far as they are decided."""
        return [item.result for item in self.items if item.result is not None]

    @property
    def has_failed(self) -> bool:
        """Return whether it was refused.  One whose client has gone isn't: its events may be stored."""
        return self.error is not None

    @property
    def leaves_events(self) -> bool:
        """Return whether an event of it was stored that the workers have to process."""
        return any(
            item.result is not None and item.result.status is IngestStatus.ACCEPTED and not item.is_processed
            for item in self.items
        )

    def fail(self, error: BaseException) -> None:
        """Refuse it."""
        if self.error is None and not self.done.done():
            self.error = error
        if not self.is_held:
            self.let_go()

    def let_go(self) -> None:
        """Tell it that it was refused, if it was."""
        self.is_held = False
        if self.error is not None and not self.done.done():
            self.done.set_exception(self.error)


class GroupCommit:
    """Stores events, many requests to a transaction.  A service of the front door: it runs while it is entered.

    Another kind of transaction overrides `commit`, and `insert_or_isolate` if it can't go on after an error.  One that
    does more in the same statement overrides `insert`.

    on_accepted: called when new events are committed that the workers have to process, before their requests are told:
    the workers need the signal sooner than the client its response.
    """

    def __init__(self, on_accepted: Callable[[], None] = lambda: None) -> None:
        self._on_accepted = on_accepted
        # By organization, the next one first.
        self._waiting: OrderedDict[uuid.UUID, deque[PendingRequest]] = OrderedDict()
        self._arrived = asyncio.Event()
        self.database = AsyncConnection()
        self.redis = AsyncRedis()
        self._rates = ReservingCounter()
        self._task: asyncio.Task[None] | None = None
        self._requests_before = 0  # how many the last commit had

    async def __aenter__(self) -> GroupCommit:
        self._task = asyncio.create_task(self._run(), name="group commit")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for requests in self._waiting.values():
            for request in requests:
                request.fail(_stopping())
        await self.database.close()
        await self.redis.close()

    async def accept(
        self,
        caller: Caller,
        events: Sequence[NewEvent],
        counted: Counted,
        origin: Origin = NO_ORIGIN,
        pending_response: PendingResponse | None = None,
    ) -> tuple[list[Ingested], RateLimitDecision | None]:
        """Store the events of one request, all in one transaction, and return what became of each.

        Duplicates are decided as `events.ingest` does.  When this returns, what it calls accepted is committed.  Also
        returns the state of the organization's rate limit, if it has one.  Raises Problem 429 over that limit, with
        nothing stored; KeyChanged when the caller may no longer send these events as remembered; and what psycopg
        raises when the database can't be reached, after which the events may or may not be stored.

        counted: of the request, however often it is offered.
        origin: where the events came from.
        pending_response: for `events.idempotent_commit`.
        """
        done = asyncio.get_running_loop().create_future()
        request = PendingRequest(caller, origin, counted, done, pending_response)
        for event_id, event in zip(new_ids(len(events)), events, strict=True):
            fingerprint = event.fingerprint() if event.dedup_id is not None else None
            request.items.append(PendingEvent(request, event_id, event, fingerprint))
            request.size += len(event.data)
        self._waiting.setdefault(caller.organization_id, deque()).append(request)
        self._arrived.set()
        return await request.done, counted.decision

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if self._requests_before > 1:
                await self._let_others_join()
            group = self._take()
            self._requests_before = len(group)
            try:
                await self.commit(group)
            except asyncio.CancelledError:
                for request in group:
                    request.fail(_stopping())
                raise
            except Exception as error:
                for request in group:
                    request.fail(error)

    async def _let_others_join(self) -> None:
        """Let the event loop read the requests whose bytes have come, until it finds no more: two passes bring none.

        One that is read in one pass arrives here in the next.  Nothing waits for the network, and a transaction for
        eight events costs much less than two for four.
        """
        without_arrival = waiting = 0
        while without_arrival < 2 and waiting < ENOUGH_REQUESTS:
            before, waiting = waiting, sum(len(requests) for requests in self._waiting.values())
            without_arrival = 0 if waiting > before else without_arrival + 1
            await asyncio.sleep(0)

    def _take(self) -> list[PendingRequest]:
        """Take what goes into the next transaction: a request of each organization in turn, while there is room."""
        group: list[PendingRequest] = []
        events = size = 0
        while self._waiting and events < MOST_EVENTS and size < MOST_BYTES:
            organization_id, requests = self._waiting.popitem(last=False)
            request = requests.popleft()
            if requests:
                self._waiting[organization_id] = requests  # after the others
            if request.done.done():  # no one waits for it any more
                continue
            group.append(request)
            events += max(1, len(request.items))
            size += request.size
        if not self._waiting:
            self._arrived.clear()
        return group

    async def commit(self, group: list[PendingRequest]) -> None:
        """Store the events of a group and tell the requests what became of them."""
        allowed = await self._count_rates(group)
        items = [item for request in allowed for item in request.items]
        while items:
            items = await self._store(items)
        self.tell(allowed)

    def tell(self, requests: Collection[PendingRequest]) -> None:
        """Tell that there are new events to process, and each request what became of its own."""
        if any(request.leaves_events for request in requests):
            self._on_accepted()
        for request in requests:
            if not request.done.done():
                request.done.set_result(request.results())

    async def _count_rates(
        self,
        group: list[PendingRequest],
        policy: str = POLICY,
        cost: Callable[[PendingRequest], int] = lambda request: len(request.items),
    ) -> list[PendingRequest]:
        """Count the requests, each once, against a limit of their organizations; return those that are within."""
        by_organization: dict[tuple[uuid.UUID, int], list[PendingRequest]] = {}
        for request in group:
            if request.caller.events_per_minute and not request.counted.is_counted:
                key = (request.caller.organization_id, request.caller.events_per_minute)
                by_organization.setdefault(key, []).append(request)
        if not by_organization:
            return group
        demands = [
            Demand(str(organization_id), rate, [cost(request) for request in requests])
            for (organization_id, rate), requests in by_organization.items()
        ]
        decisions = await self._rates.hit_each(self.redis, policy, demands)
        for requests, of_each in zip(by_organization.values(), decisions, strict=True):
            for request, decision in zip(requests, of_each, strict=True):
                request.counted.decision, request.counted.is_counted = decision, decision.allowed
                if not decision.allowed:
                    request.fail(over_limit(decision, policy))
        return [request for request in group if not request.done.done()]

    async def _store(self, items: list[PendingEvent]) -> list[PendingEvent]:
        """Store events; return those that have to be inserted again, because a dedup id has become free meanwhile."""
        offered: dict[object, PendingEvent] = {}
        for item in items:
            offered.setdefault(item.dedup_key or item.id, item)
        not_stored = await self.insert_or_isolate(list(offered.values()))
        undecided = []
        for item in items:
            if item.request.has_failed:
                continue
            row = not_stored.get(item.id)
            if row is None and offered[item.dedup_key or item.id] is item:
                item.result = Ingested(IngestStatus.ACCEPTED, uuid.UUID(item.id))
            elif row is not None and not row.permitted:
                item.request.fail(KeyChanged())
            else:
                undecided.append(item)
        undecided = [item for item in undecided if not item.request.has_failed]
        if not undecided:
            return []
        holders = await self._find_holders(undecided)
        again = []
        for item in undecided:
            holder = holders.get(item.dedup_key)
            if holder is None:
                again.append(item)
                continue
            is_same = bytes(holder.fingerprint) == item.fingerprint
            item.result = Ingested(IngestStatus.DUPLICATE if is_same else IngestStatus.CONFLICT, holder.event_id)
        return again

    async def insert_or_isolate(self, items: list[PendingEvent]) -> dict[str, NotStored]:
        """Insert all of them; if the database refuses one of them, each request by itself, so that only its own fails.

        Returns the rows of the statement by id.
        """
        try:
            return await self.insert(items)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise
        except psycopg.Error as error:
            by_request: dict[PendingRequest, list[PendingEvent]] = {}
            for item in items:
                by_request.setdefault(item.request, []).append(item)
            if len(by_request) == 1:
                items[0].request.fail(error)
                return {}
            log.warning("group_commit_split", error=type(error).__name__, requests=len(by_request))
            rows: dict[str, NotStored] = {}
            for request, own in by_request.items():
                try:
                    rows |= await self.insert(own)
                except (psycopg.OperationalError, psycopg.InterfaceError):
                    raise
                except psycopg.Error as own_error:
                    request.fail(own_error)
            return rows

    async def insert(self, items: list[PendingEvent]) -> dict[str, NotStored]:
        """Store events with one statement; return what it says of those that weren't stored, by id."""
        rows = await self.database.fetch(INSERT, insert_parameters(items), class_row(NotStored))
        return {str(row.id): row for row in rows}

    async def _find_holders(self, items: list[PendingEvent]) -> dict[tuple[uuid.UUID, str] | None, _Holder]:
        wanted = {item.dedup_key for item in items if item.dedup_key is not None}
        rows = await self.database.fetch(
            _FIND_HOLDERS,
            {"organization_ids": [key[0] for key in wanted], "dedup_ids": [key[1] for key in wanted]},
            class_row(_Holder),
        )
        return {(row.organization_id, row.dedup_id): row for row in rows}


def insert_parameters(items: Sequence[PendingEvent]) -> dict[str, object]:
    """Return the parameters of `insert_events`."""
    (
        ids, organization_ids, key_ids, rates, catalogs, types, data, dedup_ids, fingerprints, request_ids, traces,
        cloudevents, channels, ordering_keys,
    ) = zip(*map(_columns, items), strict=True)  # fmt: skip
    return {
        "ids": plain_array(ids),
        "organization_ids": plain_array(organization_ids),
        "key_ids": plain_array(key_ids),
        "rates": plain_array(rates),
        "catalogs": plain_array(catalogs),
        "types": text_array(types),
        "data": text_array(data),
        "dedup_ids": text_array(dedup_ids),
        "fingerprints": bytes_array(fingerprints),
        "request_ids": bytes_array(request_ids),
        "traces": text_array(traces),
        "cloudevents": text_array(cloudevents),
        "channels": text_array(channels),
        "ordering_keys": text_array(ordering_keys),
        "distinct_key_ids": plain_array(set(key_ids)),
        "scope": Scope.EVENTS_WRITE.value,
        "window": datetime.timedelta(seconds=settings.DEDUP_WINDOW),
    }


def _columns(item: PendingEvent) -> tuple[Any, ...]:
    caller, event, origin = item.request.caller, item.event, item.request.origin
    return (
        item.id, caller.organization_id, caller.key_id, caller.events_per_minute, caller.catalog_version,
        event.type, event.data, event.dedup_id, item.fingerprint, origin.request_id, event.trace or origin.trace,
        event.cloudevent, join(event.channels), event.ordering_key,
    )  # fmt: skip


def _stopping() -> psycopg.OperationalError:
    return psycopg.OperationalError("the server is stopping")
