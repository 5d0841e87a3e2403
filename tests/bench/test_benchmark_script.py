"""scripts/benchmark_performance.py measures a real installation from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.processes import ROOT
from devstack.sockets import free_port

SCRIPT = ROOT / "scripts" / "benchmark_performance.py"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TEST_API_")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=env, capture_output=True, text=True, timeout=110, check=False
    )


@pytest.mark.bench
def test_every_event_is_followed_from_the_request_to_the_receiver(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    done = _run("--events", "60", "--rate", "200", "--concurrency", "5", "--json", str(output))
    assert done.returncode in {0, 1}, done.stderr  # whether it was fast enough is the machine's business
    found = {(row["scenario"], row["metric"], row["unit"]): row for row in json.loads(output.read_text())}
    for phase in ("paced", "flat out"):
        for share in ("returned 202", "processed", "delivered"):
            assert found[phase, share, "%"]["value"] == 100
        assert found[phase, "delivered twice", "deliveries"]["value"] == 0
        for metric in ("API latency", "accept to processed", "accept to delivered"):
            values = [found[phase, f"{metric} {word}", "ms"]["value"] for word in ("p50", "p95", "p99", "max")]
            assert values == sorted(values)
            assert values[0] > 0
    assert found["paced", "API latency p95", "ms"]["target"] == "< 10"
    assert found["flat out", "accepted", "events/s"]["target"] == "> 100"
    assert "| paced " in done.stdout
    assert (done.returncode == 1) == any(row["ok"] is False for row in found.values())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--events", "0"], "--events must be more than 0"),
        (["--url", "http://127.0.0.1:9"], "--url and --api-key go together"),
        (["--url", f"http://127.0.0.1:{free_port()}", "--api-key", "trk_x"], "does not respond"),
    ],
)
def test_what_can_t_be_measured_ends_with_one_line(arguments: list[str], reason: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
