"""Whether the processors are busy, by how long the threads of a process have waited for one."""

from __future__ import annotations

import pytest

from core.process import ProcessorTime
from core.processor_load import BUSY_SHARE, LEAST_RUN_SHARE, LOOK_SECONDS, ProcessorLoad


class Machine:
    """A clock, and what the system tells of the process's threads."""

    def __init__(self) -> None:
        self.time = 0.0
        self.told: ProcessorTime | None = ProcessorTime(0.0, 0.0)

    def pass_by(self, seconds: float, *, ran: float, waited: float) -> None:
        self.time += seconds
        if self.told is not None:
            self.told = ProcessorTime(self.told.ran + ran, self.told.waited + waited)

    def load(self) -> ProcessorLoad:
        return ProcessorLoad(lambda: self.told, lambda: self.time)


@pytest.mark.parametrize(("share", "busy"), [(BUSY_SHARE + 0.01, True), (BUSY_SHARE - 0.01, False), (0.0, False)])
def test_processors_are_busy_when_threads_wait_for_more_than_a_share_of_their_time(share: float, busy: bool) -> None:
    machine = Machine()
    load = machine.load()
    assert not load.look()  # there is nothing to compare with
    assert not load.is_busy
    machine.pass_by(LOOK_SECONDS, ran=1 - share, waited=share)
    assert load.look()
    assert (load.is_busy, load.waited_share) == (busy, pytest.approx(share))


def test_only_what_happened_since_the_last_measurement_counts() -> None:
    machine = Machine()
    load = machine.load()
    load.look()
    machine.pass_by(LOOK_SECONDS, ran=0.0, waited=1.0)
    assert load.look()
    assert load.is_busy
    machine.pass_by(LOOK_SECONDS / 2, ran=9.0, waited=0.0)
    assert not load.look()  # too soon
    assert load.is_busy
    machine.pass_by(LOOK_SECONDS / 2, ran=0.0, waited=0.0)
    assert load.look()
    assert not load.is_busy


def test_processors_that_nobody_wanted_and_those_of_which_nothing_is_told_are_not_busy() -> None:
    machine = Machine()
    load = machine.load()
    load.look()
    machine.pass_by(LOOK_SECONDS, ran=0.0, waited=0.0)
    assert load.look()
    assert not load.is_busy
    machine.pass_by(LOOK_SECONDS, ran=0.0, waited=1.0)
    assert load.look()
    assert load.is_busy
    machine.told = None
    machine.time += LOOK_SECONDS
    assert not load.look()
    assert not load.is_busy


@pytest.mark.parametrize(("share", "seconds"), [(0.0, 0.5), (0.5, 1.0), (0.9, 5.0), (1.0, 0.5 / LEAST_RUN_SHARE)])
def test_a_process_that_waits_for_processors_sees_everything_later(share: float, seconds: float) -> None:
    machine = Machine()
    load = machine.load()
    load.look()
    machine.pass_by(LOOK_SECONDS, ran=1 - share, waited=share)
    load.look()
    assert load.with_waiting(0.5) == pytest.approx(seconds)
