"""A transaction of somebody else's, which holds others up until it ends: races whose order the test decides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
from django.db import connection

from devstack.waiting import wait_until
from tests.servers import postgres


@contextlib.contextmanager
def another_transaction() -> Iterator[psycopg.Connection[Any]]:
    """Open a transaction on a connection of its own; it is rolled back at the end, or when the test says so."""
    other = psycopg.connect(postgres.url(connection.settings_dict["NAME"]))
    try:
        yield other
    finally:
        other.close()


def wait_until_held_up(by: psycopg.Connection[Any], sessions: int = 1) -> None:
    """Wait until so many sessions wait for a lock that the transaction on `by` holds."""

    def waiting() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", [by.info.backend_pid]
            )
            return bool(cursor.fetchone()[0] >= sessions)

    wait_until(waiting)
