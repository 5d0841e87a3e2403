"""Group commit for requests with an `Idempotency-Key`: the events and the kept response in one transaction.

It is separate, with another connection that is opened when the first key comes, so that requests without a key pay
nothing for it.  A transaction takes many requests, as in `events.group_commit`, with three more statements, and another
one before it if a rate is limited.

What counts against a rate limit is counted before the transaction begins: a Redis that hangs must not keep a
connection to PostgreSQL, or a pooler's, waiting.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import psycopg
from psycopg.rows import class_row, scalar_row

from core.db import TRY_AGAIN
from events.group_commit import GroupCommit, NotStored, PendingEvent, PendingRequest, PendingResponse
from events.rate import REPLAYS
from orgs import idempotency
from orgs.front_door import KeyChanged
from orgs.idempotency import Found, Locked

# How often requests that deadlocked with others are repeated, each by itself.
MOST_ATTEMPTS = 5


class IdempotentCommit(GroupCommit):
    """Stores the events of requests with a PendingResponse, and their responses."""

    async def commit(self, group: list[PendingRequest]) -> None:
        waiting = group
        while waiting:
            # If two requests have the same key, the second one gets the response to the first.
            first_of: dict[tuple[object, str], PendingRequest] = {}
            for request in waiting:
                once = _pending_response(request).once
                first_of.setdefault((once.organization_id, once.key), request)
            taken = set(first_of.values())
            await self._commit_or_isolate(list(first_of.values()))
            waiting = [request for request in waiting if request not in taken]

    async def _commit_or_isolate(self, requests: list[PendingRequest]) -> None:
        """Commit all of them; if the database refuses the transaction, each by itself, so that only one fails."""
        try:
            await self._transact(requests)
            return
        except TRY_AGAIN:
            pass
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise
        except psycopg.Error as error:
            if len(requests) == 1:
                requests[0].fail(error)
                return
        for request in requests:
            for attempt in range(1, MOST_ATTEMPTS + 1):
                try:
                    await self._transact([request])
                except TRY_AGAIN as error:
                    if attempt == MOST_ATTEMPTS:
                        request.fail(error)
                    continue
                except (psycopg.OperationalError, psycopg.InterfaceError):
                    raise
                except psycopg.Error as error:
                    request.fail(error)
                break

    async def _transact(self, requests: list[PendingRequest]) -> None:
        await self._count_new(requests)
        requests = [request for request in requests if not request.has_failed]
        if not requests:
            return
        async with self._held(requests), self.database.transaction():
            new = []
            for request in await self._take_keys(requests):
                if request.counted.is_counted or not request.caller.events_per_minute:
                    new.append(request)
                else:
                    # It was in use a moment ago, so it wasn't counted, and nothing may be stored without that.
                    request.fail(idempotency.running())
            items = [item for request in new for item in request.items]
            while items:
                items = await self._store(items)
            served = []
            for request in new:
                if request.has_failed:
                    continue
                pending = _pending_response(request)
                try:
                    pending.response = pending.make(request.results())
                except Exception as problem:
                    request.fail(problem)
                else:
                    served.append((pending.once, pending.response))
            if served:
                await self.database.execute(idempotency.KEEP, idempotency.keep_parameters(served))
        replayed = [request for request in requests if _pending_response(request).is_replayed]
        await self._count_rates(replayed, REPLAYS, lambda request: 1)
        self.tell(requests)

    @staticmethod
    @asynccontextmanager
    async def _held(requests: Collection[PendingRequest]) -> AsyncIterator[None]:
        """Hold the requests: a client that learns of its refusal may use the key again before its lock is free."""
        for request in requests:
            request.is_held = True
        try:
            yield
        finally:
            for request in requests:
                request.let_go()

    async def _count_new(self, requests: list[PendingRequest]) -> None:
        """Count the events of requests that are served for the first time, as far as that can be seen at this point."""
        uncounted = [
            request for request in requests if request.caller.events_per_minute and not request.counted.is_counted
        ]
        if not uncounted:
            return
        everybody = [_pending_response(request).once for request in uncounted]
        known = await self.database.fetch(idempotency.PEEK, idempotency.peek_parameters(everybody), scalar_row)
        await self._count_rates([request for number, request in enumerate(uncounted) if number not in known])

    async def _take_keys(self, requests: list[PendingRequest]) -> list[PendingRequest]:
        """Lock the keys, finish the requests whose key is in use or was used, and return the others."""
        everybody = [_pending_response(request).once for request in requests]
        rows = await self.database.fetch(idempotency.LOCK, idempotency.lock_parameters(everybody), class_row(Locked))
        for row in rows:
            if not row.is_locked:
                requests[row.number].fail(idempotency.running())
        taken = [request for request in requests if not request.has_failed and not request.done.done()]
        if not taken:
            return []
        find = idempotency.find_parameters([_pending_response(request).once for request in taken])
        found = {row.number: row for row in await self.database.fetch(idempotency.FIND, find, class_row(Found))}
        for number, kept in found.items():
            _replay(taken[number], kept)
        return [request for number, request in enumerate(taken) if number not in found]

    async def insert_or_isolate(self, items: list[PendingEvent]) -> dict[str, NotStored]:
        return await self.insert(items)  # a transaction that failed can't go on: `_commit_or_isolate` begins others


def _pending_response(request: PendingRequest) -> PendingResponse:
    if request.pending_response is None:
        raise TypeError("requests without a key go to GroupCommit")
    return request.pending_response


def _replay(request: PendingRequest, found: Found) -> None:
    pending = _pending_response(request)
    if not found.is_permitted:
        request.fail(KeyChanged())
        return
    try:
        pending.response, pending.is_replayed = found.replay(pending.once), True
    except Exception as problem:
        request.fail(problem)
