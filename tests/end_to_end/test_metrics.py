"""The metrics of a running system add up to what was sent, over all of its processes, whichever of them are killed."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from devstack.http_receiver import Receiver
from devstack.sockets import free_port
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account

pytestmark = pytest.mark.end_to_end
TOKEN = "only-for-tests"

Samples = dict[tuple[str, ...], float]


def scrape(url: str, token: str = "") -> Samples:
    """Return the samples of a page: by name, and the values of the labels in the order of their names."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def is_served(url: str) -> bool:
    """Return whether somebody serves a page."""
    try:
        return bool(scrape(url))
    except OSError:
        return False


@pytest.mark.slow
def test_the_counters_of_four_web_processes_and_two_workers_survive_kills(stack: Stack, tmp_path: Path) -> None:
    port = free_port()
    env = {"METRICS_DIR": str(tmp_path), "METRICS_TOKEN": TOKEN, "METRICS_BIND": f"127.0.0.1:{port}"}
    organization = stack.make_organization("Acme")
    account = Account(stack.url, stack.make_key(organization), organization)
    stack.start_web(4, env)
    stack.start_workers(env, env)
    page = f"http://127.0.0.1:{port}/metrics"
    with Receiver() as receiver:
        account.make_subscription(receiver.url("/hook"))
        sent = 0

        def post(number: int) -> None:
            nonlocal sent
            for one in range(number):  # each on a connection of its own, so that every process gets some
                assert account.post_event(one).status == 202
            assert account.post_batch(*range(10)).status == 202
            sent += number + 10

        def is_all_counted() -> bool:
            found = scrape(page)
            return (
                found["triggers_events_total", "accepted"] == sent
                and found["triggers_events_processed_total", "persisted"] == sent
                and found["triggers_delivery_attempts_total", "delivered", "2xx"] == sent
                and found["triggers_deliveries_completed_total", "delivered"] == sent
                and found[("triggers_delivery_latency_seconds_count",)] == sent
                and found[("triggers_delivery_attempt_duration_seconds_count",)] == sent
            )

        post(20)
        wait_until(is_all_counted, "not everything is counted", 30)
        wait_until(lambda: scrape(page)["triggers_processes", "web"] == 4, "not four web processes", 30)
        assert scrape(page)["triggers_processes", "worker"] == 2
        before = scrape(page)
        assert scrape(f"{stack.url}/metrics", TOKEN)["triggers_events_total", "accepted"] == sent, "the same by token"
        assert before["triggers_http_request_duration_seconds_count", "POST", "/api/events", "2xx"] == 20
        assert before["triggers_circuit_breakers", "closed"] == 1
        for pid in (*stack.web_workers()[:2], stack.workers[0].pid):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_served(page), "no other process serves the page", 30)
        after = scrape(page)
        assert not {key for key in before if key[0].endswith(("_total", "_count")) and after[key] < before[key]}
        post(20)
        wait_until(is_all_counted, "not everything is counted after the kills", 30)
        wait_until(lambda: scrape(page)["triggers_processes", "web"] == 4, "the killed process is still counted", 30)
        assert len(list(tmp_path.iterdir())) <= 4 + 2 + 2, "a new process takes a dead one's file over"
