"""The whole system on this machine: its own servers, web and worker processes, and a look into all of them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import signal
import socket
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import redis
from psycopg import sql

from devstack import processes
from devstack.http_receiver import ReceiverProcess
from devstack.pgbouncer import PgBouncer
from devstack.pids import children
from devstack.postgres import DATABASE, USER, Postgres
from devstack.processes import OURS, Code, Process
from devstack.sockets import free_port
from devstack.supervisor import Supervised
from devstack.valkey import Valkey
from devstack.waiting import wait_until

# Fixed secrets: nothing of the tests, the benchmark, and the soak leaves this machine.
ENVIRONMENT = {
    "ENVIRONMENT": "development",
    "SECRET_KEY": "only-for-development-0123456789abcdefghij",
    "SECRETS_ENCRYPTION_KEYS": "ZGV2c3RhY2stZGV2c3RhY2stZGV2c3RhY2stZGV2cyE=",
    "WEBHOOK_ALLOWED_SUBNETS": "127.0.0.0/8,::1/128",
    "ALLOWED_HOSTS": "localhost,127.0.0.1,[::1]",
    "DJANGO_SETTINGS_MODULE": "triggers_project.settings",
}
# Each process logs in to PostgreSQL under its own name, so that pg_stat_activity tells whose session is whose.
ROLES = ("web", "worker_1", "worker_2")

# Fewer sessions for each role than its processes have connections, but more than transactions that wait for a fault.
POOL = {"default_pool_size": "6"}

SCOPES = (
    "events:write", "events:read", "subscriptions:manage", "deliveries:read", "deliveries:retry", "keys:manage",
    "inbox:consume", "event_types:manage", "portal:links", "events:erase",
)  # fmt: skip
# High enough never to be met, and still counted on each request.
EVENTS_PER_MINUTE = 100_000_000

_TABLES = (
    "webhooks_rollup", "webhooks_gauge", "webhooks_deliveryattempt", "webhooks_delivery", "webhooks_bulkrun",
    "webhooks_subscriptionqueue", "webhooks_subscription", "events_event", "events_dedupkey", "orgs_idempotencykey",
    "orgs_apikey", "orgs_auditentry", "orgs_organization",
)  # fmt: skip


class Stack:
    """Servers that live from `start` to `stop`; web and workers come and go in between.

    home: where the servers live.  env: settings of web and workers, on top of ENVIRONMENT.  A DATABASE_URL or
    REDIS_URL among them names a server that runs elsewhere; it is neither started nor emptied of old data.  pooled:
    whether web and workers reach PostgreSQL through a PgBouncer.  code: whose migrations, web, and workers run.
    """

    def __init__(
        self,
        home: Path,
        env: Mapping[str, str] | None = None,
        port: int = 0,
        *,
        pooled: bool = False,
        code: Code = OURS,
    ) -> None:
        self.home = home
        self.code = code
        self.postgres = Postgres(home / "postgres", durable=True)
        self.pooler = PgBouncer(home / "pgbouncer", self.postgres.url(), ROLES, POOL) if pooled else None
        self.valkey = Valkey(home / "valkey")
        self._other_valkey = Valkey(home / "valkey-2")
        # Where REDIS_URL leads: a link, which a failover moves to the other server's socket.
        self._valkey_link = self.valkey.socket_path.with_name("current.sock")
        self.logs = home / "log"
        self.env = {**ENVIRONMENT, **(env or {})}
        self.port = port or free_port()
        self.web: Supervised | None = None
        self.workers: list[Supervised] = []
        self._connections: dict[int, psycopg.Connection[Any]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Return the web process's base URL."""
        return f"http://127.0.0.1:{self.port}"

    @functools.cached_property
    def redis(self) -> redis.Redis:
        """Return a client of Valkey."""
        return redis.Redis.from_url(self.environment()["REDIS_URL"], socket_timeout=5)

    # --- servers ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start PostgreSQL and Valkey, and bring the schema up to date."""
        self.start_servers()
        self.migrate()

    @property
    def servers(self) -> list[Postgres | Valkey]:
        """Return the servers that are our own."""
        return [*([self.postgres] if self._owns_database else []), *([] if "REDIS_URL" in self.env else [self.valkey])]

    def start_servers(self) -> None:
        """Start PostgreSQL and Valkey."""
        if self._owns_database:
            self.postgres.start()
        if "REDIS_URL" not in self.env:
            self.valkey.start()
            self._lead_to_valkey()

    def migrate(self) -> bool:
        """Bring the schema up to date; tell whether the data had to be deleted for it.

        No migration leads from a migration's older text to its newer one, so data that was made by it goes.
        """
        if not self._owns_database:
            processes.manage("migrate", "--verbosity", "0", env=self.environment(), code=self.code)
            return False
        found = self.code.root.glob("*/migrations/0*.py")
        migrations = {f"{path.parts[-3]}/{path.stem}": _digest(path) for path in found}
        is_stale = self.is_older_than(migrations)
        if is_stale:
            self.make_database_again()
        direct = {**self.env, "DATABASE_URL": self.postgres.url()}
        # What `check` finds is for who changes the code: `migrate` would look at every route and page for it.
        env = {**self.environment(), **direct}
        processes.manage("migrate", "--verbosity", "0", "--skip-checks", env=env, code=self.code)
        self.sql(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(DATABASE), json.dumps(migrations)))
        self.make_roles()
        if self.pooler is not None:
            self.pooler.start()
        return is_stale

    def make_database_again(self) -> None:
        """Drop our database and create it, without a schema."""
        self._close_connections()
        with psycopg.connect(self.postgres.url("postgres"), autocommit=True) as session:
            session.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)".encode())
        self.postgres.create_database(DATABASE)

    def make_roles(self) -> None:
        """Create the role of each of our processes."""
        for role in ROLES:
            if not self.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)):
                self.sql(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER").format(sql.Identifier(role)))

    def is_older_than(self, migrations: Mapping[str, str]) -> bool:
        """Return whether a migration that made the schema has changed since, or is gone.

        migrations: digests by app and name, such as `orgs/0001_initial`.
        """
        ((has_schema, comment),) = self.sql(
            "SELECT to_regclass('django_migrations') IS NOT NULL, shobj_description(oid, 'pg_database')"
            " FROM pg_database WHERE datname = current_database()"
        )
        made_by = json.loads(comment or "{}").items()
        return has_schema and not (made_by and made_by <= migrations.items())

    @property
    def _owns_database(self) -> bool:
        return "DATABASE_URL" not in self.env

    def empty(self) -> None:
        """Forget all rows, and what Valkey holds."""
        self.sql("ALTER TABLE orgs_auditentry DISABLE TRIGGER USER")
        tables = [name for name in _TABLES if self.value("SELECT to_regclass(%s) IS NOT NULL", (name,))]
        self.sql(f"TRUNCATE {', '.join(tables)} CASCADE")
        self.sql("ALTER TABLE orgs_auditentry ENABLE TRIGGER USER")
        self.redis.flushall()

    def stop(self) -> None:
        self.stop_processes()
        self.stop_servers()

    def stop_servers(self) -> None:
        """Stop the servers that are our own."""
        self._close_connections()
        for valkey in (self.valkey, self._other_valkey):
            valkey.stop()
        if self.pooler is not None:
            self.pooler.stop()
        self.postgres.stop("fast")

    def fail_valkey_over(self) -> None:
        """Lead to another, empty Valkey; the old one stays up as a replica, which refuses writes."""
        old = self.valkey
        self.valkey, self._other_valkey = self._other_valkey, old
        self.valkey.start()
        self.valkey_command("REPLICAOF", "NO", "ONE")
        self.valkey_command("FLUSHALL")
        self._lead_to_valkey()
        self.redis.connection_pool.disconnect()  # which leads to the old one
        self.valkey_command("REPLICAOF", "127.0.0.1", "1", of=old)  # of nobody: Unix sockets can't replicate

    def _lead_to_valkey(self) -> None:
        moved = self._valkey_link.with_suffix(".new")
        moved.unlink(missing_ok=True)
        moved.symlink_to(self.valkey.socket_path)
        moved.replace(self._valkey_link)

    # --- processes ----------------------------------------------------------------------------------

    def environment(self, role: str = USER) -> dict[str, str]:
        """Return what a process of ours gets on top of the caller's own environment."""
        servers = {
            "DATABASE_URL": self.postgres.url().replace(f"//{USER}@", f"//{role}@", 1),
            "REDIS_URL": f"unix://{quote(str(self._valkey_link), safe='/')}?db=0",
        }
        if self.pooler is not None and role in ROLES:
            servers |= {"DATABASE_URL": self.pooler.url(role), "DB_PREPARED_STATEMENTS": "false"}
        return {**servers, **self.env}

    def set_django_up(self) -> None:
        """Set Django up in this process, on these servers."""
        import django

        os.environ.update(self.environment())
        django.setup()

    def make_web(self, workers: int = 2, env: Mapping[str, str] | None = None) -> Process:
        """Return a gunicorn, not started."""
        given = {"BIND": f"127.0.0.1:{self.port}", "WEB_CONCURRENCY": str(workers), **(env or {})}
        return self._make("web", processes.web_command(self.code), given)

    def make_worker(self, number: int = 1, env: Mapping[str, str] | None = None) -> Process:
        """Return worker `number` (1 or 2), not started."""
        return self._make(f"worker_{number}", processes.worker_command(self.code), env or {})

    def _make(self, name: str, command: list[str], env: Mapping[str, str]) -> Process:
        log = self.logs / f"{name}.log"
        return Process(name, command, log, {**self.environment(name), **env}, self.code.root)

    def start_web(self, workers: int = 2, env: Mapping[str, str] | None = None) -> Supervised:
        """Start gunicorn under supervision; it responds when this returns."""
        self.web = Supervised(lambda: self.make_web(workers, env)).start()
        self.web.process.wait_for_url(f"{self.url}/api/health")
        return self.web

    def start_workers(self, *environments: Mapping[str, str]) -> None:
        """Start a worker for each environment, side by side; they are connected when this returns."""
        for number, env in enumerate(environments, start=1):
            self.workers.append(Supervised(functools.partial(self.make_worker, number, env)).start())
        for number, _ in enumerate(environments, start=1):
            self.wait_for_worker(number)

    def wait_for_worker(self, number: int) -> None:
        """Wait until worker `number` has a session in PostgreSQL."""
        wait_until(
            lambda: self.sql("SELECT 1 FROM pg_stat_activity WHERE usename = %s", (f"worker_{number}",)),
            f"worker {number} didn't start",
        )

    def stop_processes(self) -> None:
        """Stop web and workers."""
        supervised = [*self.workers, *([self.web] if self.web else [])]
        self.web, self.workers = None, []
        for one in supervised:
            one.unwatch()
        for one in supervised:
            one.stop()

    def worker_processes(self, number: int) -> list[int]:
        """Return the process ids of worker `number`: its own, and that of its backlog sender."""
        pid = self.workers[number - 1].pid
        return [pid, *children(pid)]

    def web_workers(self) -> list[int]:
        """Return the process ids of gunicorn's workers."""
        return children(self.web.pid) if self.web is not None else []

    def receiver(self, host: str = "127.0.0.1") -> ReceiverProcess:
        """Return an HTTP receiver in a separate process, not started; use it as a context manager."""
        return ReceiverProcess(self.logs / "receiver.log", host)

    # --- a look into the servers --------------------------------------------------------------------

    def connect(self) -> psycopg.Connection[Any]:
        """Return a new session of our own, in autocommit mode."""
        return psycopg.connect(
            self.environment()["DATABASE_URL"], autocommit=True, connect_timeout=5, application_name="devstack"
        )

    def value(self, statement: Any, parameters: Any = None) -> Any:
        """Run a statement that returns one value, and return that."""
        ((value,),) = self.sql(statement, parameters)
        return value

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

    def valkey_command(self, *words: str, of: Valkey | None = None) -> bytes:
        """Send Valkey one command and return how its response begins.  of: which one, if not the current one."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str((of or self.valkey).socket_path))
            connection.sendall(" ".join(words).encode() + b"\r\n")
            answer: bytes = connection.recv(65536)
            return answer

    def make_organization(self, name: str) -> str:
        """Make an organization and return its id."""
        organization = str(uuid.uuid4())
        self.sql(
            "INSERT INTO orgs_organization (id, name, is_active, events_per_minute, retention_days)"
            " VALUES (%s, %s, true, %s, 30)",
            (organization, name, EVENTS_PER_MINUTE),
        )
        return organization

    def make_key(self, organization: str) -> str:
        """Return a new key of an organization that may do everything."""
        prefix = uuid.uuid4().hex[:12]
        key = f"trk_{prefix}_{uuid.uuid4().hex}"
        self.sql(
            "INSERT INTO orgs_apikey (id, organization_id, name, prefix, secret_hash, scopes)"
            " VALUES (%s, %s, '', %s, %s, %s)",
            (uuid.uuid4(), organization, prefix, hashlib.sha256(key.encode()).digest(), list(SCOPES)),
        )
        return key


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def forget_settings_of_the_shell() -> None:
    """Take the product's settings out of this process's environment: they must not change what is tested."""
    from triggers_project.options import OPTIONS

    for option in OPTIONS:
        os.environ.pop(option.name, None)


def stop_on_signals() -> None:
    """Let SIGTERM end this program like Ctrl-C, so that it stops what it started."""

    def end(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
