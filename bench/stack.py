"""The system under measurement: the stack with Django set up in this process, and rows made without the API."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from devstack.http_receiver import Arrival
from devstack.pids import children
from devstack.processes import OURS, ROOT, Code, Process
from devstack.stack import Stack, forget_settings_of_the_shell
from devstack.waiting import wait_until

HOME = ROOT / ".local" / "bench"
SETTINGS = {
    "MAX_QUEUE_LENGTH": "10000000",
    "MAX_WAITING_EVENTS": "10000000",
    "MAX_WAITING_DELIVERIES": "100000000",
    "WORKER_SHUTDOWN_GRACE": "1s",
}
DRAIN_SECONDS = 600.0
DATA = '{"order": 4711, "customer": "c_1029384756", "total": "19.90"}'


@dataclass(frozen=True)
class Tenant:
    """An organization with a key."""

    id: uuid.UUID
    key: str


class BenchStack(Stack):
    """Servers that live from `start` to `stop`; web and workers run for single scenarios.

    Processes aren't supervised: one that dies is a failed measurement.

    code: whose web and workers are measured.  With another checkout's, a scenario can't use our models: the tables may
    be others.
    """

    def __init__(self, home: Path = HOME, code: Code = OURS) -> None:
        super().__init__(home, SETTINGS, code=code)

    def start(self) -> None:
        """Start PostgreSQL and Valkey, migrate, and set Django up in this process."""
        forget_settings_of_the_shell()
        super().start()
        self.set_django_up()

    def reset(self) -> None:
        """Empty every table and Valkey; settle the disk, so that no scenario pays for the one before."""
        self.empty()
        self.sql("CHECKPOINT")

    @contextlib.contextmanager
    def running_web(self, workers: int = 2) -> Iterator[Process]:
        """Run gunicorn with its own settings."""
        process = self.make_web(workers).start()
        try:
            process.wait_for_url(f"{self.url}/api/health")
            yield process
        finally:
            process.stop(timeout=15)

    @contextlib.contextmanager
    def running_worker(self, number: int = 1, **env: str) -> Iterator[Process]:
        """Run one `rqworker events webhooks`; it listens when this returns."""
        before = self.redis.scard("rq:workers")
        process = self.make_worker(number, env).start()
        try:
            wait_until(lambda: self.redis.scard("rq:workers") > before or not process.alive, "the worker didn't start")
            if not process.alive:
                raise RuntimeError(f"the worker did not start: {process.last_line()}")
            self.wait_for_worker(number)
            yield process
        finally:
            process.stop(timeout=15)

    # --- what scenarios need -------------------------------------------------------------------------

    def tenant(self, name: str = "Bench") -> Tenant:
        """Make an organization whose rate limit is counted and never met, with a key."""
        organization = self.make_organization(name)
        return Tenant(uuid.UUID(organization), self.make_key(organization))

    def subscribe(self, tenant: Tenant, url: str, types: Sequence[str] = ("*",), **options: Any) -> uuid.UUID:
        """Make a subscription and return its id; with another checkout's code, its web process has to run."""
        if self.code is not OURS:
            answer = httpx.post(
                f"{self.url}/api/subscriptions",
                headers={"X-API-Key": tenant.key},
                json={"url": url, "event_types": list(types), **options},
            )
            return uuid.UUID(answer.raise_for_status().json()["id"])
        from webhooks import subscriptions

        subscription, _ = subscriptions.create(tenant.id, url=url, event_types=list(types), **options)
        subscription_id: uuid.UUID = subscription.id
        return subscription_id

    def accept_events(self, tenant: Tenant, count: int, type_: str = "order.created") -> None:
        """Insert accepted events as the API would, without it; nobody is woken."""
        self.sql(
            "INSERT INTO events_event"
            " (id, organization_id, type, data, status, failed_attempts, last_error, due_at, created_at)"
            " SELECT uuidv7(), %s, %s, %s, 'accepted', 0, '', clock_timestamp(), clock_timestamp()"
            " FROM generate_series(1, %s)",
            (tenant.id, type_, DATA, count),
        )

    def make_due(self, tenant: Tenant, subscriptions: Sequence[uuid.UUID], each: int) -> None:
        """Insert processed events with a due delivery for each subscription, `each` events in all."""
        self.sql(
            "WITH event AS ("
            " INSERT INTO events_event"
            " (id, organization_id, type, data, status, failed_attempts, last_error, due_at, created_at, processed_at)"
            " SELECT uuidv7(), %s, 'order.created', %s, 'processed', 0, '', now(), clock_timestamp(), now()"
            " FROM generate_series(1, %s) RETURNING id"
            ") INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, next_attempt_at,"
            " cause, attempts_used, attempt_count, last_error, created_at)"
            " SELECT uuidv7(), %s, event.id, s, 'pending', clock_timestamp(), 'schedule', 0, 0, '', clock_timestamp()"
            " FROM event, unnest(%s::uuid[]) AS s",
            (tenant.id, DATA, each, tenant.id, list(subscriptions)),
        )

    def announce(self, subscriptions: Sequence[uuid.UUID]) -> None:
        """Say that deliveries of these subscriptions are due, as a fan-out does."""
        from core.wakeups import WEBHOOKS, wake

        self.sql(
            "UPDATE webhooks_subscriptionqueue SET next_due_at = clock_timestamp() WHERE subscription_id = ANY(%s)",
            (list(subscriptions),),
        )
        wake(WEBHOOKS)

    def wake_fan_out(self) -> None:
        """Say that events are accepted, as the API does."""
        from core.wakeups import EVENTS, wake

        wake(EVENTS)

    def settle_tables(self) -> None:
        """Vacuum and analyze, as autovacuum would have after a while, and write what is dirty to the disk.

        Otherwise the disk works off the set-up during the measurement, and each commit waits for that.
        """
        self.sql("VACUUM ANALYZE events_event, webhooks_delivery, webhooks_deliveryattempt, webhooks_subscriptionqueue")
        self.sql("CHECKPOINT")

    def wait_until(self, statement: str, parameters: Any = None) -> None:
        """Wait until the statement's first value is true.  Raises TimeoutError."""
        wait_until(lambda: self.value(statement, parameters), f"not true: {statement}", DRAIN_SECONDS, 0.05)

    def wait_until_delivered(self) -> None:
        """Wait until nothing is accepted, due or in flight.  Raises TimeoutError."""
        self.wait_until(
            "SELECT NOT EXISTS (SELECT 1 FROM events_event WHERE status = 'accepted') AND NOT EXISTS"
            " (SELECT 1 FROM webhooks_subscriptionqueue WHERE in_flight > 0 OR next_due_at <= clock_timestamp())"
        )

    def arrival_times(self, taken: Sequence[Arrival], kind: str = "/ok/") -> list[float]:
        """Return the milliseconds from accepting an event to its arrival at a receiver below `kind`.

        Both clocks are this machine's.
        """
        accepted = {
            str(row[0]): float(row[1])
            for row in self.sql("SELECT id, extract(epoch FROM created_at) FROM events_event")
        }
        return [
            (at - accepted[event_id]) * 1000
            for path, event_id, at in taken
            if path.startswith(kind) and event_id in accepted
        ]


def cpu_seconds(*roots: int) -> float:
    """Return the processor time that these processes and their children have used so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(_ticks(pid) for root in roots for pid in (root, *children(root))) / ticks


def _ticks(pid: int) -> int:
    """Return user and system time of a process and of its children that ended, in clock ticks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(fields[position]) for position in (11, 12, 13, 14))


def cpu_nanoseconds(roots: Sequence[int]) -> int:
    """Return the time that these processes and their children, threads included, have spent on a processor.

    What has ended isn't counted.
    """
    family = {pid for root in roots for pid in (root, *children(root))}
    return sum(_on_cpu(task / "schedstat") for pid in family for task in Path(f"/proc/{pid}/task").glob("*"))


def _on_cpu(path: Path) -> int:
    try:
        return int(path.read_text().split()[0])
    except (OSError, IndexError):
        return 0
