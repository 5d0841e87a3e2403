"""Nothing accepted is lost, whatever is killed: short runs of `make soak`, as real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from devstack.processes import ROOT
from tests.servers import HOME

# A busy machine may need long.
pytestmark = pytest.mark.timeout(400)
# Workers, a web process, consumers, and PostgreSQL, each in the middle of something; `make soak` has the other faults.
ROUNDS = ["WorkerSending+WebWorker", "ConsumersKilled+PostgresStopped"]


def _soak(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "soak", *arguments], cwd=ROOT, env={"PATH": os.environ["PATH"], **env},
        capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip


@pytest.fixture
def home() -> Path:
    """Return a folder for the soak's servers, which the runs share, without an earlier result."""
    folder = HOME / "soak"
    (folder / "soak.json").unlink(missing_ok=True)
    return folder


@pytest.mark.slow
def test_every_accepted_event_arrives_whatever_is_killed(home: Path) -> None:
    done = _soak("--short", "--home", str(home), *ROUNDS, SOAK_SEED="20")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((home / "soak.json").read_text())
    assert found["violations"] == []
    assert found["rounds"] == len(ROUNDS)
    assert found["accepted"] > 0
    assert found["lost"] == found["stuck"] == 0
    pushed = 3 * (found["accepted"] + found["stored_without_response"])
    assert found["deliveries"] == pushed + found["consumed"]
    assert found["consumed"] > 0
    assert found["in_flight_at_kills"] > 0
    assert found["repeated_keys"] > 0
    assert found["duplicates"] <= found["in_flight_at_kills"]


@pytest.mark.parametrize(
    ("given_back", "second_ends", "acknowledged", "overlapping", "late"),
    [
        (False, "12:00:06", None, False, False),  # the first lease was over
        (False, "12:00:05", None, True, False),
        (True, "12:00:05", None, False, False),
        (False, "12:00:06", "12:00:02", False, True),
    ],
)
def test_what_two_consumers_must_not_fetch_is_seen(
    tmp_path: Path, given_back: bool, second_ends: str, acknowledged: str | None, overlapping: bool, late: bool
) -> None:
    def fetched(ends: str) -> dict[str, Any]:
        return {"step": "fetched", "ids": ["a"], "expires": f"2027-01-31T{ends}+00:00", "tokens": {"a": "token"}}

    first = [fetched("12:00:03")]
    if given_back:
        first.append({"step": "nacks", "ids": ["a"]})
    if acknowledged:
        at = datetime.fromisoformat(f"2027-01-31T{acknowledged}+00:00").timestamp()
        first.append({"step": "acked", "ids": ["a"], "at": at})
    for name, steps in (("one", [fetched(second_ends)]), ("two", first)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    command = [sys.executable, "-m", "soak.consumers", str(tmp_path)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
    assert json.loads(told) == {
        "fetched": 1,
        "fetched_again": 1,
        "overlapping": ["a"] if overlapping else [],
        "fetched_after_their_acknowledgement": ["a"] if late else [],
        "faults": [],
    }


def test_twenty_rounds_hold_every_fault() -> None:
    faults = (ROOT / "soak" / "faults.py").read_text()
    every = set(re.findall(r"^class ([A-Z]\w+)\((?:Fault|_KilledInStatement|_InDoubt)\)", faults, re.MULTILINE))
    assert len(every) >= 14
    plans = [_soak("--list", SOAK_SEED=seed).stdout.splitlines() for seed in ("1", "2", "3", "1")]
    for planned in plans:
        assert len(planned) == 20
        assert {fault for together in planned for fault in together.split("+")} == every
        assert sum("+" in together for together in planned) == 10
    assert plans[0] == plans[3] != plans[1]


@pytest.mark.parametrize(
    ("arguments", "env", "reason"),
    [
        (["NoSuchFault"], {}, "There is no fault 'NoSuchFault'."),
        ([], {"SOAK_ROUNDS": "many"}, "SOAK_ROUNDS and SOAK_SEED are whole numbers."),
    ],
)
def test_what_can_t_run_ends_with_one_line(arguments: list[str], env: dict[str, str], reason: str) -> None:
    done = _soak(*arguments, **env)
    assert (done.returncode, done.stderr.strip()) == (2, reason)
