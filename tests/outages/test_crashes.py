"""Nothing accepted is lost, whatever is killed: a short form of `make soak`."""

from __future__ import annotations

import pytest

from soak import faults
from soak.run import SETTINGS, Soak
from soak.stack import Stack, wait_for
from tests.system import Account

SEED = 20
QUICK = {**SETTINGS, "DELIVERY_TIMEOUT": "1s", "LEASE_MARGIN": "4s"}

PLANS: dict[str, list[tuple[type[faults.Fault], ...]]] = {
    "claiming and sending": [
        (faults.WorkerClaiming, faults.WebWorker),
        (faults.WorkerSending,),
    ],
    "fanning out and recording": [
        (faults.WorkerFanningOut, faults.WorkerClockWrong),
        (faults.WorkerRecording, faults.ValkeyFlushed),
    ],
    "commits in doubt": [
        (faults.WebInDoubt,),
        (faults.WorkerInDoubt, faults.ValkeyKilled),
        (faults.ValkeyFailedOver,),
    ],
    "servers": [
        (faults.WebMaster,),
        (faults.WorkerSending, faults.PostgresStopped),
        (faults.BacklogSenderKilled,),
    ],
}


@pytest.mark.parametrize("planned", PLANS.values(), ids=PLANS)
def test_every_accepted_event_arrives_whatever_is_killed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, planned: list[tuple[type[faults.Fault], ...]]
) -> None:
    monkeypatch.setattr(stack, "env", {**stack.env, **QUICK})
    outcome = Soak(stack, SEED, print, quiet=(0.5, 1.0)).run(planned)
    verdict = outcome.verdict
    assert not verdict.violations
    assert len(outcome.rounds) == len(planned)
    assert verdict.accepted > 0
    assert verdict.lost == verdict.stuck == 0
    assert verdict.deliveries == 3 * (verdict.accepted + verdict.stored_without_answer)
    assert verdict.in_flight_at_kills > 0
    assert verdict.duplicates <= verdict.in_flight_at_kills


def test_a_worker_killed_in_a_wake_up_leaves_nothing_of_it_in_redis(stack: Stack, account: Account) -> None:
    stack.start_web(workers=1)
    assert account.post_event().status == 202
    with stack.connect() as blocker:
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE events_event IN EXCLUSIVE MODE")
        stack.start_workers({})
        wait_for(
            lambda: stack.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'worker_1' AND wait_event_type = 'Lock'"),
            "no fan-out waits for the lock",
        )
        wait_for(lambda: stack.valkey_command("LLEN", "rq:queue:events") == b":0\r\n", "no wake-up is followed")
        stack.workers[0].unwatch()
        stack.workers[0].process.kill()
        blocker.execute("ROLLBACK")
    assert stack.valkey_command("KEYS", "rq:job:*") == b"*0\r\n"


def test_every_fault_of_the_soak_is_made_here_too_and_twenty_rounds_hold_each() -> None:
    every = {*faults.WORKER_FAULTS, *faults.OTHER_FAULTS}
    assert {fault for planned in PLANS.values() for together in planned for fault in together} == every
    for seed in range(50):
        planned = faults.plan(20, seed)
        assert {fault for together in planned for fault in together} == every
        assert sum(len(together) == 2 for together in planned) == 10
        assert planned == faults.plan(20, seed)
