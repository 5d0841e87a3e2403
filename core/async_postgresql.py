"""A PostgreSQL connection for an event loop, with Django's settings for the database.

It takes SQL, because the ORM needs a thread for each query, even if it is called from a coroutine.
"""

from __future__ import annotations

import asyncio
import random
import select
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg
import structlog
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from psycopg.rows import AsyncRowFactory

from core.db import MAX_ATTEMPTS, TRY_AGAIN

log = structlog.get_logger()
R = TypeVar("R")

# After a failed attempt to connect, statements fail at once for this long.
AWAY_SECONDS = 0.25


class AsyncConnection:
    """One connection, opened when it is needed, and again when the server has closed it.

    Each statement is a transaction, except inside `transaction`.  For one task at a time.
    """

    def __init__(self) -> None:
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._away_until = float("-inf")
        self._in_transaction: psycopg.AsyncConnection[Any] | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Run all statements inside in one transaction, which must end within DB_POOL_TIMEOUT; none is repeated.

        Raises what psycopg raises; OperationalError also when the time is up.
        """
        connection = await self._usable_connection()
        try:
            async with asyncio.timeout(settings.DB_POOL_TIMEOUT), connection.transaction():
                self._in_transaction = connection
                try:
                    yield
                finally:
                    self._in_transaction = None
        except TimeoutError:
            await self.close()
            raise psycopg.OperationalError("the database did not respond in time") from None
        except BaseException:
            if connection.closed or connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                await self.close()
            raise

    async def execute(self, statement: str, parameters: Mapping[str, object]) -> None:
        """Execute a statement that returns no rows; for use within a transaction."""
        if self._in_transaction is None:
            raise RuntimeError("there is no transaction")
        await self._in_transaction.execute(statement, parameters)

    async def fetch(
        self,
        statement: str,
        parameters: Mapping[str, object],
        row_factory: AsyncRowFactory[R],
        *,
        first: str | None = None,
    ) -> list[R]:
        """Execute a statement and return its rows; repeat it after a deadlock.

        first: a statement that is executed before it, in the same round trip and transaction, such as a setting.

        Raises what psycopg raises; OperationalError also when the server doesn't respond within DB_POOL_TIMEOUT.
        """
        if self._in_transaction is not None:
            if first is not None:
                await self._in_transaction.execute(first)
            cursor = self._in_transaction.cursor(row_factory=row_factory)
            await cursor.execute(statement, parameters)
            return await cursor.fetchall()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            connection = await self._usable_connection()
            try:
                async with asyncio.timeout(settings.DB_POOL_TIMEOUT):
                    cursor = connection.cursor(row_factory=row_factory)
                    if first is None:
                        await cursor.execute(statement, parameters)
                    else:
                        # What a pipeline sends before its end is one transaction.
                        async with connection.pipeline():
                            await connection.cursor().execute(first)
                            await cursor.execute(statement, parameters)
                    return await cursor.fetchall()
            except TRY_AGAIN as error:
                if attempt == MAX_ATTEMPTS:
                    raise
                log.info("transaction_retried", error=type(error).__name__, attempt=attempt)
                await asyncio.sleep(random.uniform(0, 0.02 * attempt))
            except TimeoutError:
                await self.close()
                raise psycopg.OperationalError("the database did not respond in time") from None
            except BaseException:
                if connection.closed or connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    await self.close()
                raise
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close the connection; the next statement opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _usable_connection(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is not None:
            if not self._connection.closed and not _has_something_to_read(self._connection):
                return self._connection
            await self.close()
        if time.monotonic() < self._away_until:
            raise psycopg.OperationalError("the database refuses connections")
        parameters = connections[DEFAULT_DB_ALIAS].get_connection_params()
        del parameters["cursor_factory"]  # Django's, which isn't for the event loop
        parameters.pop("pool", None)
        try:
            self._connection = await psycopg.AsyncConnection.connect(**parameters, autocommit=True)
        except psycopg.OperationalError:
            self._away_until = time.monotonic() + AWAY_SECONDS
            raise
        return self._connection


def _has_something_to_read(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Return whether the server has sent something unasked, such as that it shuts down, or has closed the
    connection."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
