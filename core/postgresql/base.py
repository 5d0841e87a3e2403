"""Django's PostgreSQL backend with a pool that knows a busy database from one that is away.

A pool that is only busy is worth DB_POOL_TIMEOUT of waiting: a connection comes back soon.  A database
that refuses connections is not: every thread of a web process would wait that long, and nobody would
hear why.  So the wait ends early once an attempt to connect has failed and none has succeeded since.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from psycopg_pool import PoolTimeout

# How long a wait lasts before the state of the database is looked at again.
SLICE_SECONDS = 1.0
# While the database is away, how long a caller waits for one attempt to connect.
AWAY_SECONDS = 0.25


class _Reach:
    """Whether the last attempt of this process to connect failed."""

    away = False


class WatchedConnection(psycopg.Connection[Any]):
    """A connection that tells whether opening it succeeded."""

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> WatchedConnection:
        """Connect as psycopg does."""
        try:
            connection = super().connect(*args, **kwargs)
        except psycopg.OperationalError:
            _Reach.away = True
            raise
        _Reach.away = False
        return connection


class DatabaseWrapper(base.DatabaseWrapper):
    """The backend that settings.DATABASES names as `core.postgresql`."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Return a connection of the pool, within its timeout, or soon when the database is away.

        Raises psycopg's PoolTimeout, which is an OperationalError.
        """
        pool = self.pool
        if not pool:
            return super().get_new_connection(conn_params)
        self.isolation_level = IsolationLevel.READ_COMMITTED
        pool.open()
        ends = time.monotonic() + pool.timeout
        while True:
            left = ends - time.monotonic()
            try:
                return pool.getconn(min(left, AWAY_SECONDS if _Reach.away else SLICE_SECONDS))
            except PoolTimeout:
                if _Reach.away:
                    raise PoolTimeout("the database refuses connections") from None
                if time.monotonic() >= ends:
                    raise
