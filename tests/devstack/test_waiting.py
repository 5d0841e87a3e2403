"""Whoever waits in vain is told for what."""

from __future__ import annotations

import psycopg
import pytest

from devstack.waiting import wait_until


def test_what_the_condition_returned_is_returned() -> None:
    found = iter([[], None, 0, "here"])
    assert wait_until(lambda: next(found), pause=0) == "here"


def test_in_vain_says_what_was_waited_for_and_what_was_there() -> None:
    with pytest.raises(TimeoutError, match=r"^the moon didn't rise \(after 0 s; last: \[\]\)$"):
        wait_until(list, "the moon didn't rise", 0)
    with pytest.raises(TimeoutError, match=r"still not true: wait_until\(lambda: 1 > 2, timeout=0\) \(after 0 s"):
        wait_until(lambda: 1 > 2, timeout=0)


def test_a_database_that_is_away_is_waited_for_and_any_other_error_is_not() -> None:
    def away() -> bool:
        raise psycopg.OperationalError("the server is away")

    with pytest.raises(TimeoutError, match=r"last: OperationalError.*the server is away"):
        wait_until(away, "no answer", 0)

    def broken() -> bool:
        raise psycopg.ProgrammingError("no such table")

    with pytest.raises(psycopg.ProgrammingError):
        wait_until(broken)
