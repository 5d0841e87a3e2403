#!/usr/bin/env python
"""Measure an installation from outside: how fast it accepts, processes and delivers events.

    scripts/benchmark_performance.py --events 1000 --concurrency 20 [--url http://host:8000 --api-key trk_…]

Without --url it starts its own installation (PostgreSQL, Valkey, gunicorn, one worker) and
stops it again.  It makes a subscription to its own receiver for the time of the measurement and sends
the events twice: paced, at --rate a second whatever the responses are (open loop, so that a wait is part of
the latency), and flat out over --concurrency connections.

TEST_API_URL and TEST_API_KEY stand in for --url and --api-key.  The exit code is 0 when every target is
met, 1 when one is missed, 2 when it could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import figures  # noqa: E402 - the checkout has to be found first
from bench.client import Api, Outcome, flat_out, paced  # noqa: E402
from bench.figures import Figure  # noqa: E402
from bench.stack import BenchStack  # noqa: E402
from bench.stats import duplicates, summary  # noqa: E402
from devstack.errors import DevstackError  # noqa: E402
from devstack.http_receiver import ReceiverProcess  # noqa: E402
from devstack.stack import stop_on_signals  # noqa: E402

HOME = ROOT / ".local" / "benchmark"
PAGE = 100


class CannotMeasure(Exception):
    """The installation can't be measured; the message says why."""


@dataclass
class Phase:
    """One way of sending the events, and what was seen.  Times in seconds since the epoch, by event id."""

    name: str
    outcome: Outcome
    accepted: dict[str, float] = field(default_factory=dict)
    arrivals: list[tuple[str, str, float]] = field(default_factory=list)
    processing: list[float] = field(default_factory=list)
    last_arrival_after: float = 0.0


def call(url: str, key: str, method: str, path: str, body: Any = None) -> Any:
    """Return the JSON of an API call.  Raises CannotMeasure when it fails."""
    request = urllib.request.Request(
        url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-API-Key": key, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        problem = json.loads(error.read() or b"{}")
        reasons = [f"{one['pointer']} {one['detail']}" for one in problem.get("errors", [])]
        reason = "; ".join(reasons) or problem.get("detail", "no reason given")
        raise CannotMeasure(f"{method} {path} returned {error.code}: {reason}") from None
    except OSError as error:
        raise CannotMeasure(f"{url} does not respond: {error}") from None


class Run:
    """A measurement of the installation at `url` with the key's organization."""

    def __init__(self, url: str, key: str, receiver: ReceiverProcess, options: argparse.Namespace) -> None:
        self.url = url.rstrip("/")
        self.key = key
        self.receiver = receiver
        self.options = options
        # A type that only this run uses: no other events are counted, and no other subscription is hit.
        self.type = f"benchmark.{secrets.token_hex(6)}"

    def measure(self) -> list[Phase]:
        """Subscribe the receiver, send the events in both ways, and take the subscription away again."""
        made = call(
            self.url, self.key, "POST", "/api/subscriptions",
            {"url": self.receiver.url(f"/ok/{self.type}"), "event_types": [f"{self.type}.*"], "description": self.type},
        )  # fmt: skip
        try:
            # Connections, plans and the subscription's window as they are in a steady state.
            self._send("warmup", min(200, self.options.events))
            return [self._send(name, self.options.events) for name in ("paced", "flat out")]
        finally:
            call(self.url, self.key, "DELETE", f"/api/subscriptions/{made['id']}")

    def _send(self, name: str, events: int) -> Phase:
        api = Api(self.url, self.key)
        type_ = f"{self.type}.{name.replace(' ', '_')}"
        accepted: dict[str, float] = {}

        def on_answer(status: int, body: bytes, sent: float) -> None:
            if status == 202:
                accepted[json.loads(body)["id"]] = sent

        requests = (
            api.build("POST", "/api/events", json.dumps({"type": type_, "data": {"order": number}}).encode())
            for number in range(events)
        )
        started = time.time()
        if name == "paced":
            outcome = asyncio.run(paced(api, requests, self.options.rate, self.options.concurrency, on_answer))
        else:
            outcome = asyncio.run(flat_out(api, requests, self.options.concurrency, on_answer))
        phase = Phase(name, outcome, accepted, self._wait_for_arrivals(accepted))
        phase.last_arrival_after = max((at for _, _, at in phase.arrivals), default=started) - started
        phase.processing = self._processing_times(type_, len(accepted))
        return phase

    def _wait_for_arrivals(self, accepted: dict[str, float]) -> list[tuple[str, str, float]]:
        """Return what the receiver got, once it has every accepted event or the patience ends."""
        ends = time.monotonic() + self.options.patience
        came: list[tuple[str, str, float]] = []
        while True:
            came += self.receiver.take()
            if accepted.keys() <= {event_id for _, event_id, _ in came} or time.monotonic() > ends:
                return [one for one in came if one[1] in accepted]
            time.sleep(0.1)

    def _processing_times(self, type_: str, expected: int) -> list[float]:
        """Return the milliseconds from accepting to the end of the fan-out, as the API tells them."""
        times: list[float] = []
        cursor = ""
        while len(times) < expected:
            listed = call(self.url, self.key, "GET", f"/api/events?type={type_}&status=processed&limit={PAGE}{cursor}")
            times += [_milliseconds(event["created_at"], event["processed_at"]) for event in listed["data"]]
            if not listed["next_cursor"]:
                break
            cursor = f"&cursor={listed['next_cursor']}"
        return times


def _milliseconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() * 1000


def report(phase: Phase) -> list[Figure]:
    """Return a phase's figures with their targets; latencies have theirs at the steady pace only."""
    steady = phase.name == "paced"
    delivered = [(at - phase.accepted[event_id]) * 1000 for _, event_id, at in phase.arrivals]
    found: list[Figure] = []
    for metric, values, target in (
        ("API latency", [seconds * 1000 for seconds in phase.outcome.latencies], "< 10"),
        ("accept to processed", phase.processing, "< 100"),
        ("accept to delivered", delivered, ""),
    ):
        for word, value in summary(values).items():
            found.append(
                Figure(phase.name, f"{metric} {word}", value, "ms", target if steady and word == "p95" else "")
            )
    arrived = {event_id for _, event_id, _ in phase.arrivals}
    sent = phase.outcome.requests
    if not steady:
        rate = sent / max(phase.outcome.seconds, 1e-9)
        found.append(Figure(phase.name, "accepted", rate, "events/s", "> 100"))
        through = len(arrived) / max(phase.last_arrival_after, 1e-9)
        found.append(Figure(phase.name, "delivered", through, "events/s", "> 100"))
    found += [
        Figure(phase.name, "returned 202", phase.outcome.share(202) * 100, "%", "= 100"),
        Figure(phase.name, "processed", len(phase.processing) / sent * 100, "%", "= 100"),
        Figure(phase.name, "delivered", len(arrived) / sent * 100, "%", "= 100"),
        Figure(phase.name, "delivered twice", duplicates(phase.arrivals), "deliveries", "= 0"),
    ]
    return found


@contextlib.contextmanager
def installation(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Give URL and key of what is measured: the named installation, or one that is ours while this lasts."""
    if options.url:
        yield options.url, options.api_key
        return
    print("Starting an installation to measure ...", file=sys.stderr, flush=True)
    stack = BenchStack(HOME)
    try:
        stack.start()
        stack.reset()
        tenant = stack.tenant()
        with stack.running_web(), stack.running_worker():
            yield stack.url, tenant.key
    finally:
        stack.stop()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options; ends the program with a line on a wrong one."""
    parser = argparse.ArgumentParser(description="Measure an installation of Triggers API from outside.")
    parser.add_argument("--events", type=int, default=1000, help="events to send in each of the two runs (1000)")
    parser.add_argument("--concurrency", type=int, default=20, help="connections (20)")
    parser.add_argument("--rate", type=float, default=100.0, help="events a second in the paced run (100)")
    parser.add_argument("--url", default=os.environ.get("TEST_API_URL", ""), help="base URL, such as http://host:8000")
    parser.add_argument("--api-key", default=os.environ.get("TEST_API_KEY", ""), help="a key with every scope")
    parser.add_argument(
        "--endpoint-host",
        default="127.0.0.1",
        help="address of this machine that the workers can reach and WEBHOOK_ALLOWED_SUBNETS allows (127.0.0.1)",
    )
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for the last delivery (60)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args(arguments)
    for name in ("events", "concurrency", "rate", "patience"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be more than 0")
    if bool(options.url) != bool(options.api_key):
        parser.error("--url and --api-key go together")
    return options


def main() -> int:
    """Measure and print; returns the exit code."""
    options = parse()
    stop_on_signals()
    try:
        with (
            installation(options) as (url, key),
            ReceiverProcess(HOME / "logs" / "receiver.log", options.endpoint_host) as receiver,
        ):
            phases = Run(url, key, receiver, options).measure()
    except (CannotMeasure, DevstackError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    found = [figure for phase in phases for figure in report(phase)]
    print(figures.table(found))
    if options.json:
        figures.write(found, options.json)
    return 1 if any(figure.ok is False for figure in found) else 0


if __name__ == "__main__":
    sys.exit(main())
