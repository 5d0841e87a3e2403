"""High rates are booked a thousandth at a time, and no more passes than the rate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

from django_redis import get_redis_connection

from core.ratelimits import hit
from devstack.processes import ROOT

KEY = "triggers:rate:p:a"


def counted() -> int:
    return int(get_redis_connection("default").get(KEY) or 0)


def test_far_from_its_end_a_rate_is_booked_ahead_and_told_exactly() -> None:
    verdicts = [hit("p", "a", 5000) for _ in range(12)]
    assert [verdict.remaining for verdict in verdicts] == list(range(4999, 4987, -1))
    assert all(verdict.allowed and 0 < verdict.reset_seconds <= 60 for verdict in verdicts)
    assert counted() == 15


def test_one_process_gets_the_whole_rate_and_not_one_more() -> None:
    assert sum(hit("p", "a", 3000).allowed for _ in range(3100)) == 3000
    assert counted() == 3000


def test_threads_at_once_get_the_whole_rate_and_not_one_more() -> None:
    allowed: list[int] = []

    def call() -> None:
        allowed.append(sum(hit("p", "a", 3000).allowed for _ in range(500)))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 3000


def test_processes_together_never_get_more_and_lose_at_most_what_they_booked() -> None:
    program = (
        "import django; django.setup()\n"
        "from core.ratelimits import hit\n"
        "import sys\n"
        "assert hit('p', 'a', 20000).allowed\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(sum(hit('p', 'a', 20000).allowed for _ in range(9000)))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=dict(os.environ), cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    results = [json.loads(process.communicate("\n", timeout=60)[0]) for process in processes]
    assert 20000 - 3 * 20 <= 3 + sum(results) <= 20000


def test_a_batch_takes_what_is_booked_or_books_anew_and_a_large_one_is_counted_alone() -> None:
    assert hit("p", "a", 50_000, cost=30).remaining == 49_970
    assert counted() == 50
    assert hit("p", "a", 50_000, cost=20).remaining == 49_950
    assert counted() == 50
    assert hit("p", "a", 50_000, cost=40).remaining == 49_910
    assert hit("p", "a", 50_000, cost=30).remaining == 49_880
    assert counted() == 150
    assert hit("p", "a", 50_000, cost=500).remaining == 50_000 - 620
    assert counted() == 650


def test_what_was_booked_ends_with_its_minute() -> None:
    get_redis_connection("default").set(KEY, 0, px=200)
    assert hit("p", "a", 5000).allowed
    assert counted() == 5
    deadline = threading.Event()
    while get_redis_connection("default").exists(KEY):
        deadline.wait(0.02)
    assert hit("p", "a", 5000).remaining == 4999
    assert counted() == 5


def test_a_rate_that_was_changed_is_asked_for_anew() -> None:
    assert hit("p", "a", 5000).allowed
    assert hit("p", "a", 6000).remaining == 5999 - 5
    assert not hit("p", "a", 4).allowed


def test_without_redis_what_was_booked_is_used_first() -> None:
    assert hit("p", "a", 5000).remaining == 4999
    get_redis_connection("default").set(KEY, "no number")  # whoever asks gets an error
    assert [hit("p", "a", 5000).remaining for _ in range(4)] == [4998, 4997, 4996, 4995]
    assert hit("p", "a", 5000).allowed, "counted here"
