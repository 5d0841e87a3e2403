"""A connection that the server closed is never handed out."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from django.db import connection

from core.db import borrow_connection, give_connection_back, keep_connection, server_cursor


def _backend() -> int:
    with server_cursor() as cursor:
        row = cursor.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def _kill(pid: int) -> None:
    """End a backend and wait until it is gone, over a connection of our own."""
    options: dict[str, Any] = connection.get_connection_params()
    names = ("host", "port", "user", "password", "dbname")
    with psycopg.connect(**{name: options[name] for name in names if name in options}, autocommit=True) as own:
        assert own.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,)).fetchone() == (True,)


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_the_server_ended_while_it_was_idle_is_replaced_unnoticed() -> None:
    for _ in range(5):
        pid = borrow_connection(_backend)
        _kill(pid)
        assert borrow_connection(_backend) != pid


@pytest.mark.django_db(transaction=True)
def test_a_kept_connection_is_the_same_until_it_is_given_back_breaks_or_its_work_fails() -> None:
    pid = keep_connection(_backend)
    kept = connection.connection
    assert keep_connection(lambda: connection.connection) is kept
    _kill(pid)
    assert keep_connection(_backend) != pid
    with pytest.raises(ZeroDivisionError):
        keep_connection(lambda: 1 / 0)
    assert connection.connection is None
    keep_connection(_backend)
    give_connection_back()
    assert connection.connection is None
