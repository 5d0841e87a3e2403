"""The system that is hurt: servers of its own, supervised web and worker processes, and a look into the database."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import django
import psycopg
from psycopg import sql

from devstack import processes
from devstack.pids import children
from devstack.postgres import USER, Postgres
from devstack.processes import Process
from devstack.sockets import free_port
from devstack.valkey import Valkey
from soak.clock import Clock
from soak.supervisor import Supervised

T = TypeVar("T")

# Fixed secrets: nothing of the soak leaves this machine.
ENVIRONMENT = {
    "ENVIRONMENT": "development",
    "SECRET_KEY": "only-for-the-soak-0123456789abcdefghijkl",
    "SECRETS_ENCRYPTION_KEYS": "c29hay1vbmx5LXNvYWstb25seS1zb2FrLW9ubHktISE=",
    "WEBHOOK_ALLOWED_SUBNETS": "127.0.0.0/8",
    "ALLOWED_HOSTS": "localhost,127.0.0.1",
    "DJANGO_SETTINGS_MODULE": "triggers_project.settings",
    "DEFAULT_EVENTS_PER_MINUTE": "1000000",
}
# Each process logs in to PostgreSQL under a name of its own, so that pg_stat_activity tells whose session is whose.
ROLES = ("web", "worker_1", "worker_2")

SCOPES = (
    "events:write", "events:read", "subscriptions:manage", "deliveries:read", "deliveries:retry", "keys:manage",
)  # fmt: skip

_TABLES = (
    "webhooks_deliveryattempt, webhooks_delivery, webhooks_subscriptionqueue, webhooks_bulkrun, webhooks_subscription, "
    "events_event, events_dedupkey, orgs_apikey, orgs_auditentry, orgs_organization"
)


class Stack:
    """Servers that live from `start` to `stop`; web and workers come and go in between.

    home: where the servers live.  env: settings of web and workers, on top of ENVIRONMENT.
    """

    def __init__(self, home: Path, env: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.postgres = Postgres(home / "postgres", durable=True)
        self.valkey = Valkey(home / "valkey")
        self.logs = home / "logs"
        self.env = {**ENVIRONMENT, **(env or {})}
        self.port = free_port()
        self.web: Supervised | None = None
        self.workers: list[Supervised] = []
        self.clock = Clock(home / "clock")
        self._connections: dict[int, psycopg.Connection[Any]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Return the web process's base URL."""
        return f"http://127.0.0.1:{self.port}"

    # --- life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start PostgreSQL and Valkey, migrate, and empty what an earlier run left."""
        self.postgres.start()
        self.valkey.start()
        processes.manage("migrate", "--verbosity", "0", env=self._environment(USER))
        for role in ROLES:
            if not self.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)):
                self.sql(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER").format(sql.Identifier(role)))
        self.empty()

    def set_django_up(self) -> None:
        """Set Django up in this process, on the servers that run."""
        os.environ.update(self._environment(USER))
        django.setup()

    def empty(self) -> None:
        """Forget all rows, and what Valkey holds."""
        self.sql("ALTER TABLE orgs_auditentry DISABLE TRIGGER USER")
        self.sql(f"TRUNCATE {_TABLES} CASCADE")  # type: ignore[arg-type]
        self.sql("ALTER TABLE orgs_auditentry ENABLE TRIGGER USER")
        self.valkey_command("FLUSHALL")

    def stop(self) -> None:
        """Stop everything."""
        self.stop_processes()
        self._close_connections()
        self.valkey.stop()
        self.postgres.stop("fast")

    def stop_processes(self) -> None:
        """Stop web and workers."""
        web, self.web = self.web, None
        workers, self.workers = self.workers, []
        for supervised in [*workers, *([web] if web else [])]:
            supervised.unwatch()
        for supervised in [*workers, *([web] if web else [])]:
            supervised.stop()

    def _environment(self, role: str) -> dict[str, str]:
        """Return what a process of ours gets on top of the caller's own environment."""
        url = self.postgres.url().replace(f"//{USER}@", f"//{role}@", 1)
        return {**self.env, "DATABASE_URL": url, "REDIS_URL": self.valkey.url()}

    def process(self, name: str, command: list[str], role: str, env: Mapping[str, str] | None = None) -> Process:
        """Return one of our processes, not started; its log is `name`.log."""
        return Process(name, command, self.logs / f"{name}.log", {**self._environment(role), **(env or {})})

    def make_web(self, workers: int = 2, env: Mapping[str, str] | None = None) -> Process:
        """Return a gunicorn, not started."""
        given = {"BIND": f"127.0.0.1:{self.port}", "WEB_CONCURRENCY": str(workers), **(env or {})}
        return self.process("web", processes.web_command(), "web", given)

    def make_worker(self, number: int, env: Mapping[str, str] | None = None) -> Process:
        """Return worker `number` (1 or 2), not started."""
        return self.process(f"worker_{number}", processes.worker_command(), f"worker_{number}", env)

    def start_web(self, workers: int = 2, env: Mapping[str, str] | None = None) -> Supervised:
        """Start gunicorn under supervision; it answers when this returns."""
        self.web = Supervised(lambda: self.make_web(workers, env)).start()
        self.web.process.wait_for_url(f"{self.url}/api/health")
        return self.web

    def start_workers(self, *environments: Mapping[str, str]) -> None:
        """Start a worker for each environment, side by side; they are connected when this returns."""
        for number, env in enumerate(environments, start=1):
            self.workers.append(Supervised(functools.partial(self.make_worker, number, env)).start())
        for number, _ in enumerate(environments, start=1):
            self.wait_for_worker(number)

    def wait_for_worker(self, number: int, seconds: float = 60.0) -> None:
        """Wait until worker `number` has a session in PostgreSQL."""
        wait_for(
            lambda: bool(self.sql("SELECT 1 FROM pg_stat_activity WHERE usename = %s", (f"worker_{number}",))),
            f"worker {number} didn't start",
            seconds,
        )

    def worker_processes(self, number: int) -> list[int]:
        """Return the process ids of worker `number`: its own, and that of its process for the busy queues."""
        pid = self.workers[number - 1].pid
        return [pid, *children(pid)]

    def web_workers(self) -> list[int]:
        """Return the process ids of gunicorn's workers."""
        return children(self.web.pid) if self.web is not None else []

    # --- a look into the servers --------------------------------------------------------------------

    def connect(self) -> psycopg.Connection[Any]:
        """Return a new session of our own, in autocommit mode."""
        return psycopg.connect(self.postgres.url(), autocommit=True, connect_timeout=5, application_name="soak")

    def sql(self, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows, on a session that is made again after a crash of the server.

        Raises psycopg.OperationalError while the server is away.
        """
        key = threading.get_ident()
        for attempt in (1, 2):
            with self._lock:
                connection = self._connections.get(key)
            try:
                if connection is None:
                    connection = self.connect()
                    with self._lock:
                        self._connections[key] = connection
                cursor = connection.execute(statement, parameters)
                return list(cursor.fetchall()) if cursor.description else []
            except psycopg.OperationalError:
                if connection is not None and not connection.closed and not connection.broken:
                    raise
                with self._lock:
                    self._connections.pop(key, None)
                if connection is None or attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def _close_connections(self) -> None:
        with self._lock:
            for connection in self._connections.values():
                with contextlib.suppress(psycopg.Error):
                    connection.close()
            self._connections.clear()

    def valkey_command(self, *words: str) -> bytes:
        """Send Valkey one command and return the first bytes of its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.valkey.socket_path))
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.recv(65536)

    def make_organization(self, name: str) -> str:
        """Make an organization and return its id."""
        organization = str(uuid.uuid4())
        self.sql(
            "INSERT INTO orgs_organization (id, name, is_active, events_per_minute, retention_days)"
            " VALUES (%s, %s, true, 1000000, 30)",
            (organization, name),
        )
        return organization

    def make_key(self, organization: str) -> str:
        """Return a new key of an organization that may do everything."""
        prefix = uuid.uuid4().hex[:12]
        key = f"trk_{prefix}_{uuid.uuid4().hex}"
        self.sql(
            "INSERT INTO orgs_apikey (id, organization_id, name, prefix, secret_hash, scopes)"
            " VALUES (uuidv7(), %s, '', %s, %s, %s)",
            (organization, prefix, hashlib.sha256(key.encode()).digest(), list(SCOPES)),
        )
        return key


def wait_for(condition: Callable[[], T], otherwise: str, seconds: float = 60.0, pause: float = 0.02) -> T:
    """Return what `condition()` returns as soon as it is true.

    Errors of a database that is away count as not yet.  Raises TimeoutError with the text `otherwise`.
    """
    ends = time.monotonic() + seconds
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            found = condition()
            if found:
                return found
        if time.monotonic() > ends:
            raise TimeoutError(otherwise)
        time.sleep(pause)
