"""Metrics: slots that outlive their processes, and the kinds of metrics that are kept in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest

from core.metrics import kinds
from core.metrics.kinds import Counter, Gauge, Histogram
from core.metrics.page import make_registry
from core.metrics.store import SLOT_BYTES, Store, read_all
from devstack.processes import ROOT
from devstack.waiting import wait_until

# Counts to a number under a key, says so, and waits to be killed.
CHILD = """
import sys, time
from pathlib import Path
from core.metrics.store import Store
store = Store(Path(sys.argv[1]))
for kind in ("c", "g"):
    store.numbers((kind, "x", "a"), 1)[0] += float(sys.argv[2])
print("ready", flush=True)
time.sleep(600)
"""


def start(folder: Path, number: int) -> subprocess.Popen[bytes]:
    """Start a process that has counted to a number."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(number)], env=env, stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.readline() == b"ready\n"
    return child


def kill(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.stdout
    child.stdout.close()


def test_what_a_killed_process_has_counted_stays_and_the_next_one_counts_on(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    first, second = start(folder, 3), start(folder, 4)
    assert read_all(folder) == {("c", "x", "a"): [7], ("g", "x", "a"): [7]}
    kill(first)
    assert read_all(folder) == {("c", "x", "a"): [7], ("g", "x", "a"): [4]}, "a gauge goes with its process"
    third = start(folder, 5)
    assert read_all(folder) == {("c", "x", "a"): [12], ("g", "x", "a"): [9]}
    assert len(list(folder.iterdir())) == 2, "the third has taken the first one's file over"
    assert folder.stat().st_mode & 0o777 == 0o700
    kill(second)
    kill(third)
    assert read_all(folder) == {("c", "x", "a"): [12]}


def test_a_file_that_is_none_of_ours_or_cut_short_is_left_out_and_made_anew(tmp_path: Path) -> None:
    (tmp_path / "slot-0").write_bytes(b"something else entirely")
    (tmp_path / "slot-1").write_bytes(b"")
    assert read_all(tmp_path) == {}
    store, other = Store(tmp_path), Store(tmp_path)
    store.numbers(("c", "x"), 1)[0] = 2
    other.numbers(("c", "x"), 1)[0] = 3
    assert read_all(tmp_path) == {("c", "x"): [5]}


def test_a_full_slot_and_a_folder_that_cannot_be_written_to_stop_nobody(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(20):
        store.numbers(("c", str(number)), SLOT_BYTES // 100)[0] += 1
    for number in range(20):
        store.numbers(("c", str(number)), SLOT_BYTES // 100)[0] += 1
    assert set(map(tuple, (row[:1] for row in read_all(tmp_path).values()))) == {(2.0,)}
    (tmp_path / "file").write_text("")
    Store(tmp_path / "file").numbers(("c", "x"), 1)[0] += 1


def test_a_disk_without_room_stops_nobody(tmp_path: Path) -> None:
    """Written into through memory, a file for which there is no room kills its process."""
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from core.metrics.store import Store, read_all\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "import django; django.setup()\n"
        "numbers = Store(Path(sys.argv[1])).numbers(('c', 'x'), 10_000)\n"
        "numbers[9_999] += 1\n"
        "assert read_all(Path(sys.argv[1])) == {}\n"
    )
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "triggers_project.settings"}
    command = [sys.executable, "-c", program, str(tmp_path / "metrics")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "metrics_not_kept" in done.stderr


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test declare metrics that nobody else sees."""
    monkeypatch.setattr(kinds, "declared", {})


@pytest.fixture
def page(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch, declared: None) -> Any:
    """Return a function that returns the page of what this process counts from now on."""
    settings.METRICS_DIR = str(tmp_path)
    own = Store(tmp_path)
    monkeypatch.setattr(kinds, "store", lambda: own)
    monkeypatch.setattr("core.metrics.page.declared", kinds.declared)
    return lambda: [
        line for line in generate_latest(make_registry(list)).decode().splitlines() if line and not line.startswith("#")
    ]


def test_counters_gauges_and_histograms_as_prometheus_reads_them(page: Any) -> None:
    events = Counter("x_events_total", "Events.", ["outcome"])
    lives = Gauge("x_processes", "Processes.")
    took = Histogram("x_seconds", "Time.", ["route"], bounds=(0.5, 1.0))
    events.inc("accepted")
    events.inc("accepted", by=4)
    lives.set(1)
    took.observe(0.5, "/a")
    took.observe_all([0.75, 0.25, 4.0, 0.1], "/a")
    took.observe_all([], "/b")
    assert page() == [
        'x_events_total{outcome="accepted"} 5.0',
        "x_processes 1.0",
        'x_seconds_bucket{le="0.5",route="/a"} 3.0',
        'x_seconds_bucket{le="1.0",route="/a"} 4.0',
        'x_seconds_bucket{le="+Inf",route="/a"} 5.0',
        'x_seconds_count{route="/a"} 5.0',
        'x_seconds_sum{route="/a"} 5.6',
    ]


def test_threads_that_count_at_a_time_lose_nothing(page: Any) -> None:
    events = Counter("x_events_total", "Events.")
    threads = [threading.Thread(target=lambda: [events.inc() for _ in range(5000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert page() == ["x_events_total 20000.0"]


def test_what_another_version_has_written_is_left_out(page: Any) -> None:
    Histogram("x_seconds", "Time.", bounds=(0.5, 1.0))
    Counter("x_total", "Things.", ["a"])
    kinds.store().numbers(("h", "x_seconds"), 3)[0] = 1
    kinds.store().numbers(("c", "x_total"), 1)[0] = 1
    kinds.store().numbers(("c", "gone_total"), 1)[0] = 1
    assert page() == []


def test_a_name_is_taken_once_and_labels_must_fit(declared: None) -> None:
    events = Counter("x_total", "Things.", ["a"])
    with pytest.raises(ValueError, match="two metrics"):
        Counter("x_total", "Things.")
    with pytest.raises(ValueError, match="labels"):
        events.inc("b", "c")


def test_a_forked_process_has_a_slot_of_its_own(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    program = (
        "import os, django; django.setup()\n"
        "from core.metrics.kinds import Counter\n"
        "events = Counter('x_total', 'Things.')\n"
        "events.inc()\n"
        "child = os.fork()\n"
        "events.inc(by=2)\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)\n"
    )
    env = {**os.environ, "METRICS_DIR": str(tmp_path / "new"), "DJANGO_SETTINGS_MODULE": "triggers_project.settings"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, check=True)
    assert wait_until(lambda: read_all(tmp_path / "new")) == {("c", "x_total"): [5]}
    assert len(list((tmp_path / "new").iterdir())) == 2
