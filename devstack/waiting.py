"""The one way in which the tools and the tests wait for something to become true."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

T = TypeVar("T")


def wait_until(condition: Callable[[], T], otherwise: str = "", timeout: float = 60.0, pause: float = 0.02) -> T:
    """Return what `condition()` returns as soon as it is true.

    A database that is away counts as not yet.  Raises TimeoutError, which says `otherwise` or, without it, the
    condition's source, and what the condition returned last.
    """
    ends = time.monotonic() + timeout
    while True:
        found: object
        try:
            found = value = condition()
            if value:
                return value
        except psycopg.OperationalError as error:
            found = error
        if time.monotonic() > ends:
            raise TimeoutError(f"{otherwise or _source_of(condition)} (after {timeout:g} s; last: {found!r:.300})")
        time.sleep(pause)


def _source_of(condition: Callable[[], object]) -> str:
    """Return the source of a condition in one line, or its name where there is no source."""
    try:
        return f"still not true: {' '.join(inspect.getsource(condition).split())}"
    except (OSError, TypeError):
        return f"still not true: {condition!r}"
