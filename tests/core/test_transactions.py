"""Transactions that are one pipeline: what is committed, what is rolled back, and what the caller hears of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction

from core.db import after_transaction, in_pipelined_transaction, pipelined, server_cursor

pytestmark = pytest.mark.django_db(transaction=True)

WRONG = "SELECT 1 / 0"


@pytest.fixture(autouse=True)
def table(transactional_db: None) -> Any:
    """A table of its own, because what counts here is whether a row is there."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE pipelined (name text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE pipelined")


def add(name: str) -> psycopg.Cursor[Any]:
    cursor = server_cursor()
    cursor.execute("INSERT INTO pipelined VALUES (%s) RETURNING name", (name,))
    return cursor


def names() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pipelined ORDER BY name")
        return [row[0] for row in cursor.fetchall()]


def test_what_was_not_fetched_can_be_fetched_after_the_commit() -> None:
    def work() -> list[psycopg.Cursor[Any]]:
        first = add("a")
        assert first.fetchall() == [("a",)]
        return [add("b"), add("c")]

    later = in_pipelined_transaction(work)
    assert [cursor.fetchall() for cursor in later] == [[("b",)], [("c",)]]
    assert [cursor.rowcount for cursor in later] == [1, 1]
    assert names() == ["a", "b", "c"]


def fails_while_fetching() -> None:
    add("a")
    server_cursor().execute(WRONG).fetchall()


def fails_unseen() -> None:
    add("a")
    server_cursor().execute(WRONG)


def fails_at_the_commit() -> None:
    add("a")
    add("a")


def fails_unseen_and_goes_on() -> None:
    fails_unseen()
    add("b")


def fails_by_itself() -> None:
    add("a")
    raise ValueError


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (fails_while_fetching, psycopg.errors.DivisionByZero),
        (fails_unseen, psycopg.errors.DivisionByZero),
        (fails_unseen_and_goes_on, psycopg.errors.DivisionByZero),
        (fails_at_the_commit, psycopg.errors.UniqueViolation),
        (fails_by_itself, ValueError),
    ],
)
def test_what_fails_is_rolled_back_and_the_connection_goes_on(work: Callable[[], None], error: type[Exception]) -> None:
    with pytest.raises(error):
        in_pipelined_transaction(work)
    assert names() == []
    in_pipelined_transaction(lambda: add("b"))
    assert names() == ["b"]


def test_an_error_that_is_dropped_commits_nothing_and_is_told() -> None:
    def work() -> None:
        add("a")
        with contextlib.suppress(psycopg.errors.DivisionByZero), pipelined():
            server_cursor().execute(WRONG)

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        in_pipelined_transaction(work)
    assert names() == []


def test_a_deadlock_is_tried_again() -> None:
    attempts = []

    def work() -> None:
        attempts.append(add(str(len(attempts))))
        if len(attempts) < 3:
            raise psycopg.errors.DeadlockDetected

    in_pipelined_transaction(work)
    assert (len(attempts), names()) == (3, ["2"])


def test_effects_wait_for_the_commit() -> None:
    seen = []

    def work() -> None:
        add("a")
        after_transaction(lambda: seen.append(names()))
        if not seen and len(attempts) < 1:
            attempts.append(1)
            raise psycopg.errors.DeadlockDetected

    attempts: list[int] = []
    in_pipelined_transaction(work)
    assert seen == [["a"]]


def test_within_a_transaction_it_is_a_part_of_that() -> None:
    def whole() -> None:
        with transaction.atomic():
            in_pipelined_transaction(lambda: add("a"))
            with pytest.raises(psycopg.errors.DivisionByZero):
                in_pipelined_transaction(fails_while_fetching)
            assert names() == ["a"]
            raise ValueError

    with pytest.raises(ValueError):
        whole()
    assert names() == []
