"""Django's PostgreSQL backend, with a pool that distinguishes a busy database from one that is away.

It is worth waiting DB_POOL_TIMEOUT for a pool that is only busy: a connection comes back soon.  It isn't for a database
that refuses connections: every thread of a web process would wait that long, and the reason would stay unknown.  So the
wait ends early once an attempt to connect has failed and none has succeeded since.

A connection is checked when it is borrowed.  Asking the server costs a round trip, so that is done once a second for
each; in between, it is enough to look whether the server has closed the connection.
"""

from __future__ import annotations

import select
import time
from typing import Any

import psycopg
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from psycopg_pool import ConnectionPool, PoolTimeout

# How long to wait before checking the state of the database again.
SLICE_SECONDS = 1.0
# While the database is away, how long a caller waits for one attempt to connect.
AWAY_SECONDS = 0.25
# How long a connection is trusted after the server responded, unless it was closed.
BELIEVED_SECONDS = 1.0


class _Reach:
    """Whether the last attempt of this process to connect failed, and why."""

    away = False
    reason = ""


class WatchedConnection(psycopg.Connection[Any]):
    """A connection that notes whether opening it succeeded, and can check whether it still works."""

    answered_at = float("-inf")

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> WatchedConnection:
        """Connect as psycopg does."""
        try:
            connection = super().connect(*args, **kwargs)
        except psycopg.Error as error:
            _Reach.away, _Reach.reason = True, str(error)
            raise
        _Reach.away = False
        connection.answered_at = time.monotonic()
        return connection

    def works(self) -> bool:
        """Return whether the connection works: ask the server, or only look if it responded just now."""
        if self.closed:
            return False
        if time.monotonic() - self.answered_at < BELIEVED_SECONDS and not self._has_something_to_read():
            return True
        try:
            ConnectionPool.check_connection(self)
        except psycopg.Error:
            return False
        self.answered_at = time.monotonic()
        return True

    def _has_something_to_read(self) -> bool:
        """Return whether the server has sent something unasked, or has closed the connection."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))


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
                connection = pool.getconn(min(left, AWAY_SECONDS if _Reach.away else SLICE_SECONDS))
                if connection.works():
                    return connection
                connection.close()
                pool.putconn(connection)  # which replaces it
            except PoolTimeout:
                if _Reach.away:
                    raise PoolTimeout(_Reach.reason) from None
                if time.monotonic() >= ends:
                    raise
