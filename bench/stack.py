"""The system under measurement: durable servers of its own, web and worker processes, and direct SQL."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from devstack import processes
from devstack.pids import children
from devstack.postgres import Postgres
from devstack.processes import ROOT, Process
from devstack.valkey import Valkey

HOME = ROOT / ".local" / "bench"

# Fixed secrets: nothing of the benchmark leaves this machine.
ENVIRONMENT = {
    "ENVIRONMENT": "development",
    "SECRET_KEY": "only-for-benchmarks-0123456789abcdefghijk",
    "SECRETS_ENCRYPTION_KEYS": "YmVuY2htYXJrLW9ubHktYmVuY2htYXJrLW9ubHktISE=",
    "WEBHOOK_ALLOWED_SUBNETS": "127.0.0.0/8",
    "ALLOWED_HOSTS": "localhost,127.0.0.1",
    "DJANGO_SETTINGS_MODULE": "triggers_project.settings",
    "MAX_QUEUE_LENGTH": "10000000",
    "MAX_WAITING_EVENTS": "10000000",
    "MAX_WAITING_DELIVERIES": "100000000",
    "WORKER_SHUTDOWN_GRACE": "1s",
}
# High enough never to be met, and still counted on each request.
EVENTS_PER_MINUTE = 100_000_000
DRAIN_SECONDS = 600.0
ADMIN = ("bench", "bench-only-password")

_TABLES = (
    "webhooks_deliveryattempt, webhooks_delivery, webhooks_subscriptionqueue, webhooks_bulkrun, webhooks_subscription, "
    "events_event, events_dedupkey, orgs_apikey, orgs_organization"
)


@dataclass(frozen=True)
class Tenant:
    """An organization with a key."""

    id: uuid.UUID
    key: str


class Stack:
    """Servers that live from `start` to `stop`; `web`, `worker` and `reset` are for single scenarios."""

    def __init__(self, home: Path = HOME) -> None:
        self.home = home
        self.postgres = Postgres(home / "postgres", durable=True)
        self.valkey = Valkey(home / "valkey")
        self.logs = home / "logs"

    # --- life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start PostgreSQL and Valkey, migrate, and set Django up in this process."""
        self.postgres.start()
        self.valkey.start()
        from triggers_project.options import OPTIONS

        # A setting of the shell must not change what is measured.
        for option in OPTIONS:
            os.environ.pop(option.name, None)
        os.environ.update(ENVIRONMENT, DATABASE_URL=self.postgres.url(), REDIS_URL=self.valkey.url())
        processes.manage("migrate", "--verbosity", "0")
        import django

        django.setup()

    def stop(self) -> None:
        """Stop the servers."""
        self.valkey.stop()
        self.postgres.stop()

    def reset(self) -> None:
        """Empty every table and Valkey; settle the disk, so that no scenario pays for the one before."""
        self.sql(f"TRUNCATE {_TABLES} CASCADE")
        self.sql("CHECKPOINT")
        self.redis().flushall()

    @contextlib.contextmanager
    def web(self, workers: int = 2, **env: str) -> Iterator[WebServer]:
        """Run gunicorn with its own settings."""
        process, url = processes.web(self.logs / "web.log", env=env, workers=workers)
        try:
            yield WebServer(process, url)
        finally:
            process.stop(timeout=15)

    @contextlib.contextmanager
    def worker(self, **env: str) -> Iterator[Process]:
        """Run one `rqworker events webhooks`; it listens when this returns."""
        before = self._workers_known()
        process = processes.worker(self.logs / "worker.log", env)
        try:
            ends = time.monotonic() + 60
            while self._workers_known() <= before:
                if not process.alive or time.monotonic() > ends:
                    raise RuntimeError(f"the worker did not start: {process.last_line()}")
                time.sleep(0.05)
            time.sleep(0.3)
            yield process
        finally:
            process.stop(timeout=15)

    def _workers_known(self) -> int:
        return int(self.redis().scard("rq:workers"))

    # --- what scenarios need -------------------------------------------------------------------------

    def sql(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement in its own transaction and return its rows."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    @contextlib.contextmanager
    def snapshot(self, *, held: bool = True) -> Iterator[None]:
        """Keep a snapshot of now open, as a dump or a long report does: vacuum removes nothing younger."""
        if not held:
            yield
            return
        with psycopg.connect(self.postgres.url()) as reader:
            reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            reader.execute("SELECT 1")
            yield

    def redis(self) -> Any:
        """Return a connection to Valkey."""
        from django_redis import get_redis_connection

        return get_redis_connection("default")

    def tenant(self, name: str = "Bench") -> Tenant:
        """Make an organization whose rate limit is counted and never met, with a key."""
        from orgs.keys import create_api_key
        from orgs.models import Organization

        organization = Organization.objects.create(name=name, events_per_minute=EVENTS_PER_MINUTE)
        return Tenant(organization.id, create_api_key(organization)[1])

    def subscribe(self, tenant: Tenant, url: str, types: Sequence[str] = ("*",), **options: Any) -> uuid.UUID:
        """Make a subscription and return its id."""
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
            (tenant.id, type_, '{"order": 4711, "customer": "c_1029384756", "total": "19.90"}', count),
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
            (
                tenant.id, '{"order": 4711, "customer": "c_1029384756", "total": "19.90"}', each, tenant.id,
                list(subscriptions),
            ),
        )  # fmt: skip

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
        """Vacuum and analyze, as autovacuum would have after a while."""
        self.sql("VACUUM ANALYZE events_event, webhooks_delivery, webhooks_deliveryattempt, webhooks_subscriptionqueue")

    def wait_until(self, statement: str, parameters: Any = None) -> None:
        """Wait until the statement's first value is true.  Raises TimeoutError."""
        ends = time.monotonic() + DRAIN_SECONDS
        while not self.sql(statement, parameters)[0][0]:
            if time.monotonic() > ends:
                raise TimeoutError(statement)
            time.sleep(0.05)

    def wait_until_delivered(self) -> None:
        """Wait until nothing is accepted, due or in flight.  Raises TimeoutError."""
        self.wait_until(
            "SELECT NOT EXISTS (SELECT 1 FROM events_event WHERE status = 'accepted') AND NOT EXISTS"
            " (SELECT 1 FROM webhooks_subscriptionqueue WHERE in_flight > 0 OR next_due_at <= clock_timestamp())"
        )

    def processing_times(self) -> list[float]:
        """Return the milliseconds from accepting to processing, of every processed event."""
        return [
            float(row[0])
            for row in self.sql(
                "SELECT extract(epoch FROM processed_at - created_at) * 1000 FROM events_event"
                " WHERE status = 'processed'"
            )
        ]

    def arrival_times(self, taken: Sequence[tuple[str, str, float]], kind: str = "/ok/") -> list[float]:
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

    def cpu_seconds(self, *roots: int) -> float:
        """Return the processor time that these processes, their children and PostgreSQL have used so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(_ticks(pid) for root in roots for pid in (root, *children(root))) / ticks


@dataclass(frozen=True)
class WebServer:
    """A running gunicorn."""

    process: Process
    url: str

    def get_seconds(self, path: str, headers: Mapping[str, str], times: int = 9) -> list[float]:
        """Return how long each of `times` GETs of `path` took, after one that is not counted."""
        taken = []
        for _ in range(times + 1):
            request = urllib.request.Request(f"{self.url}{path}", headers=dict(headers))
            started = time.perf_counter()
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
            taken.append(time.perf_counter() - started)
        return taken[1:]


def _ticks(pid: int) -> int:
    """Return user and system time of a process and of its children that ended, in clock ticks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(fields[position]) for position in (11, 12, 13, 14))


def resident_mib(pid: int) -> list[float]:
    """Return the resident memory of a process and of each of its children, in MiB."""
    return [
        int(line.split()[1]) / 1024
        for one in (pid, *children(pid))
        for line in Path(f"/proc/{one}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    ]


def stop_on_signals() -> None:
    """Let SIGTERM end the benchmark like Ctrl-C, so that it stops what it started."""

    def end(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
