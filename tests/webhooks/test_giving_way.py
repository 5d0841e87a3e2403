"""When the process that works off backlogs rests, and for how long."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from structlog.testing import capture_logs

from core.giving_way import MORE, MOST, MOST_SECONDS
from core.process import ProcessorTime, processor_time
from core.processor_load import LOOK_SECONDS
from webhooks.dispatch.giving_way import OTHERS_SECONDS, Pace


class Machine:
    """The readings of a machine: its clock, and its processors, of which a share of the time is waited for."""

    def __init__(self) -> None:
        self.time = 0.0
        self.share: float | None = 0.9
        self.ran = self.waited = 0.0
        self.rests: list[float] = []

    def read(self) -> ProcessorTime | None:
        return None if self.share is None else ProcessorTime(self.ran, self.waited)

    def now(self) -> float:
        return self.time

    def pass_by(self, seconds: float) -> None:
        """Let time pass, all of which the process wants a processor."""
        self.time += seconds
        self.waited += seconds * (self.share or 0)
        self.ran += seconds * (1 - (self.share or 0))


@pytest.fixture
def machine() -> Machine:
    """Return a machine whose processors are busy."""
    return Machine()


@pytest.fixture
def pace(machine: Machine) -> Pace:
    """Return the pace of a process on the machine."""
    return Pace(machine.read, machine.now, machine.rests.append)


def run(pace: Pace, machine: Machine, times: int, seconds: float = LOOK_SECONDS) -> list[float]:
    """Run transactions of so many seconds while others are served; return the rests."""
    machine.rests.clear()
    for _ in range(times):
        pace.others_are_served()
        assert pace.run(lambda: machine.pass_by(seconds) or "result") == "result"
    return list(machine.rests)


def test_on_busy_processors_it_rests_longer_and_longer_while_others_are_served(pace: Pace, machine: Machine) -> None:
    rests = run(pace, machine, 4, 0.04) + run(pace, machine, 60, 0.04)
    assert 0 < rests[0] < rests[-1]
    assert all(later > earlier - 1e-9 for earlier, later in itertools.pairwise(rests))
    assert rests[-1] == pytest.approx(0.04 * MOST)
    assert pace.gives_way
    assert max(run(pace, machine, 5, 10.0)) == MOST_SECONDS


def test_it_goes_on_at_full_speed_when_the_processors_are_free_again(pace: Pace, machine: Machine) -> None:
    assert run(pace, machine, 20)
    machine.share = 0.01
    run(pace, machine, 40)
    assert run(pace, machine, 5) == []
    assert not pace.gives_way


def test_it_does_not_rest_when_nobody_else_is_served(pace: Pace, machine: Machine) -> None:
    with capture_logs() as lines:
        for _ in range(10):
            pace.run(lambda: machine.pass_by(LOOK_SECONDS))
    assert (machine.rests, lines) == ([], [])
    assert run(pace, machine, 10)
    machine.pass_by(OTHERS_SECONDS)
    machine.rests.clear()
    for _ in range(10):
        pace.run(lambda: machine.pass_by(LOOK_SECONDS))
    assert machine.rests == []
    # How busy the processors were until then doesn't count.
    assert run(pace, machine, 1) == [pytest.approx(MORE * LOOK_SECONDS)]


def test_it_does_not_rest_where_the_system_tells_nothing(pace: Pace, machine: Machine) -> None:
    machine.share = None
    assert run(pace, machine, 10) == []


def test_a_transaction_that_fails_is_followed_by_a_rest_and_keeps_nobody_out(pace: Pace, machine: Machine) -> None:
    run(pace, machine, 10)
    machine.rests.clear()
    with pytest.raises(ZeroDivisionError):
        pace.run(lambda: 1 / 0)
    assert machine.rests == [0.0]
    assert run(pace, machine, 1)


def test_a_long_transaction_rests_between_its_pieces(pace: Pace, machine: Machine) -> None:
    pace.between_pieces()  # outside of a transaction, and while nobody has to wait
    pace.run(pace.between_pieces)
    assert machine.rests == []
    run(pace, machine, 40)
    machine.rests.clear()

    def in_three_pieces() -> None:
        for seconds in (0.01, 0.02):
            machine.pass_by(seconds)
            pace.between_pieces()
        machine.pass_by(0.03)

    pace.others_are_served()
    pace.run(in_three_pieces)
    assert machine.rests == pytest.approx([0.01 * MOST, 0.02 * MOST, 0.03 * MOST])


def test_while_it_gives_way_its_transactions_run_one_at_a_time(pace: Pace, machine: Machine) -> None:
    run(pace, machine, 10)
    running = threading.Semaphore(1)
    overlapped: list[bool] = []

    def work() -> None:
        overlapped.append(not running.acquire(blocking=False))
        time.sleep(0.01)
        running.release()

    threads = [threading.Thread(target=lambda: pace.run(work)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlapped == [False] * 8


def test_a_process_knows_how_long_its_threads_ran_and_waited() -> None:
    before = processor_time()
    assert before is not None
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = processor_time()
    assert after is not None
    assert after.ran - before.ran > 0.03
    assert after.waited >= before.waited >= 0
