"""Processors that are busy, for tests of what gives way on them (`core.giving_way`)."""

from __future__ import annotations

import pytest

from core import giving_way, turns
from core.giving_way import Rests
from core.process import ProcessorTime


class Busy:
    """Processors for which every thread waits half of its time, and a clock that moves at each look."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        """Return the time, a second later than before."""
        self.time += 1.0
        return self.time

    def read(self) -> ProcessorTime:
        """Return that threads have waited for as long as they have run."""
        return ProcessorTime(ran=self.time, waited=self.time)


def busy_rests() -> Rests:
    """Return rests that are due once it has been looked twice."""
    busy = Busy()
    return Rests("test", busy.read, busy.now)


@pytest.fixture
def long_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a rest longer than any test."""
    monkeypatch.setattr(giving_way, "MORE", 1e9)
    monkeypatch.setattr(giving_way, "MOST", 1e9)
    monkeypatch.setattr(giving_way, "MOST_SECONDS", 3600.0)
    monkeypatch.setattr(turns, "STUCK_SECONDS", 3600.0)
    monkeypatch.setattr(turns, "MOST_WAIT_SECONDS", 3600.0)
