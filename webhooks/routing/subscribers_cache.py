"""What the subscriptions of organizations want, remembered in a web process: the front door can't wait for a look."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
from cachetools import LRUCache
from psycopg.rows import class_row

from core.arrays import plain_array
from core.db import borrow_connection, server_cursor
from webhooks.routing.matching import Matcher
from webhooks.routing.subscribers import FINGERPRINT, REMEMBERED_ORGANIZATIONS, Subscribers

log = structlog.get_logger()

# Whoever has more subscriptions is left to the fan-out of the workers: the statement that stores an event would compare
# all of them.
MOST_SUBSCRIPTIONS = 50
# Between two looks at the same organization: at one with few subscriptions, and at one with too many.
LOOK_AGAIN_SECONDS = 0.1
MANY_AGAIN_SECONDS = 10.0
# After one that failed.
RETRY_SECONDS = 1.0
ORGANIZATIONS_AT_A_TIME = 20

# SQL, because of the fingerprint (`subscribers`), which reads `xmin`.
_FINGERPRINTS = f"""
SELECT o.id AS organization_id, of_few.fingerprint, of_few.fingerprint IS NULL AND subscriptions.number > 0 AS are_many
FROM unnest(%(ids)s::uuid[]) AS o(id)
CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT 1 FROM webhooks_subscription s WHERE s.organization_id = o.id AND s.deleted_at IS NULL
        LIMIT {MOST_SUBSCRIPTIONS + 1}
    ) AS found
) AS subscriptions
CROSS JOIN LATERAL (
    SELECT CASE WHEN subscriptions.number BETWEEN 1 AND {MOST_SUBSCRIPTIONS}
           THEN {FINGERPRINT.format(organization_id="o.id")} END AS fingerprint
) AS of_few
"""  # noqa: S608 - constants of ours


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    """A row of _FINGERPRINTS."""

    organization_id: uuid.UUID
    fingerprint: str | None
    are_many: bool


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an organization's subscriptions want.

    fingerprint: of the subscriptions (`subscribers.FINGERPRINT`), empty if there are none.  matcher: None if there are
    too many.  looked_at: by the monotonic clock.
    """

    fingerprint: str
    matcher: Matcher | None
    looked_at: float


class SubscribersCache:
    """Remembers subscriptions by organization, and looks at them in a thread.  For one event loop."""

    def __init__(self) -> None:
        self._subscribers = Subscribers()  # only used in the thread
        self._remembered: LRUCache[uuid.UUID, Remembered] = LRUCache(REMEMBERED_ORGANIZATIONS)
        self._wanted: set[uuid.UUID] = set()
        self._looking: asyncio.Task[None] | None = None
        self._retry_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="subscribers")

    def get(self, organization_id: uuid.UUID) -> Remembered | None:
        """Return what is remembered, which may be outdated; None if it is to be looked at first."""
        remembered = self._remembered.get(organization_id)
        if remembered is None or (
            remembered.matcher is None and time.monotonic() - remembered.looked_at > MANY_AGAIN_SECONDS
        ):
            self.look(organization_id)
        return remembered

    def look(self, organization_id: uuid.UUID) -> None:
        """Look at an organization's subscriptions soon, because what is remembered is outdated."""
        remembered, now = self._remembered.get(organization_id), time.monotonic()
        if now < self._retry_at or (remembered is not None and now - remembered.looked_at < LOOK_AGAIN_SECONDS):
            return
        self._wanted.add(organization_id)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while self._wanted:
            some = [self._wanted.pop() for _ in range(min(len(self._wanted), ORGANIZATIONS_AT_A_TIME))]
            try:
                found = await loop.run_in_executor(self._thread, borrow_connection, lambda ids=some: self._load(ids))
            except Exception as error:
                # The workers fan the events out.
                log.warning("subscribers_not_read", organizations=len(some), error=repr(error)[:300])
                self._retry_at = time.monotonic() + RETRY_SECONDS
                self._wanted.clear()
                return
            self._remembered.update(found)

    def _load(self, organization_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Remembered]:
        looked_at = time.monotonic()
        with server_cursor(class_row(_Fingerprint)) as cursor:
            rows = cursor.execute(_FINGERPRINTS, {"ids": plain_array(organization_ids)}).fetchall()
        matchers = self._subscribers.matchers({row.organization_id: row.fingerprint for row in rows})
        return {
            row.organization_id: Remembered(
                row.fingerprint or "",
                None if row.are_many else matchers.get(row.organization_id, Matcher(())),
                looked_at,
            )
            for row in rows
        }
