"""A process with a wrong setting, or without its database, ends at once with one line that says why."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trustme

from devstack.pids import children
from devstack.postgres import USER
from devstack.sockets import free_port
from tests.servers import ENVIRONMENT, postgres, valkey
from tests.webhooks.helpers import raw_server
from triggers_project.options import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "triggers_project.asgi"]
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]

WRONG = {
    "ENVIRONMENT": "staging",
    "DATABASE_URL": "postgres://user:hunter2@host:port/triggers",
    "REDIS_URL": "redis://:hunter2@host:99999",
    "REDIS_SENTINELS": "sentinel-1",
    "DEBUG": "perhaps",
    "ALLOWED_HOSTS": "https://triggers.example.com",
    "CORS_ALLOWED_ORIGINS": "https://tool.example/page",
    "CSRF_TRUSTED_ORIGINS": "triggers.example.com",
    "USE_HTTPS": "2",
    "TRUSTED_PROXIES": "-1",
    "URL_PREFIX": "/a b",
    "ADMIN_PATH": "a/b",
    "LOG_LEVEL": "verbose",
    "DB_POOL_SIZE": "0",
    "DB_POOL_MAX_OVERFLOW": "-1",
    "DB_POOL_TIMEOUT": "30 seconds",
    "DB_POOL_MAX_LIFETIME": "soon",
    "DB_PREPARED_STATEMENTS": "auto",
    "WEB_CONCURRENCY": "0",
    "WEB_THREADS": "²",
    "PORT": "http",
    "GUNICORN_LOG_LEVEL": "loud",
    "MAX_EVENT_BYTES": "256K",
    "MAX_BATCH_BYTES": "5MiB",
    "MAX_BATCH_EVENTS": "0",
    "MAX_JSON_DEPTH": "1",
    "DEDUP_WINDOW": "1w",
    "MAX_QUEUE_LENGTH": "0",
    "MAX_WAITING_EVENTS": "0",
    "MAX_WAITING_DELIVERIES": "many",
    "DEFAULT_EVENTS_PER_MINUTE": "-1",
    "DEFAULT_RETENTION_DAYS": "0",
    "ROLLUP_RETENTION_DAYS": "6",
    "HELD_RETENTION_DAYS": "-1",
    "PARTITION_DAYS": "0",
    "AUTH_FAILURES_PER_MINUTE": "0",
    "MAX_API_KEYS": "0",
    "MAX_SUBSCRIPTIONS": "none",
    "MAX_EVENT_TYPES": "0",
    "MAX_CONCURRENT_EVENTS": "0",
    "MAX_CONCURRENT_DELIVERIES": "1.5",
    "MAX_CONNECTIONS_PER_HOST": "0",
    "MAX_IN_FLIGHT_PER_SUBSCRIPTION": "0",
    "INITIAL_CONCURRENCY_WINDOW": "0",
    "EVENT_MAX_ATTEMPTS": "0",
    "SWEEP_INTERVAL": "0",
    "WORKER_SHUTDOWN_GRACE": "-5s",
    "WORKER_HEARTBEAT_FILE": "/does/not/exist/alive",
    "DISABLE_WEBHOOK_DELIVERY": "maybe",
    "DELIVERY_RETRY_SCHEDULE": "0s,soon",
    "DELIVERY_RETRY_JITTER": "nan",
    "DELIVERY_TIMEOUT": "0",
    "LEASE_MARGIN": "0",
    "RETRY_AFTER_MAX": "0",
    "RESPONSE_BODY_BYTES": "1k",
    "DISABLE_AFTER_FAILING_FOR": "0",
    "BREAKER_THRESHOLD": "-1",
    "BREAKER_BASE_DELAY": "0",
    "BREAKER_MAX_DELAY": "0",
    "DNS_CACHE_TTL": "1h",
    "WEBHOOK_DNS_SERVERS": "dns.example",
    "WEBHOOK_ALLOWED_SUBNETS": "10.0.0.1/8",
    "WEBHOOK_ALLOWED_PORTS": "443,https",
    "WEBHOOK_PROXY_URL": "socks5://x",
    "WEBHOOK_CA_FILE": "/does/not/exist.pem",
    "PORTAL_URL": "hooks.example.com",
    "PORTAL_FRAME_ORIGINS": "https://a.example; script-src *",
    "PORTAL_COLOR": "blue",
    "PORTAL_LOGO_URL": "logo.svg",
    "LOGIN_FAILURE_LIMIT": "0",
    "LOGIN_COOLOFF": "0",
    "METRICS_DIR": "/does/not/exist/metrics",
    "METRICS_BIND": "9464",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4318",
    "NOTIFY_FAILING_AFTER": "soon",
    "NOTIFICATION_INTERVAL": "-1",
    "NOTIFY_KEY_EXPIRING_WITHIN": "a week",
    "OPERATOR_EMAILS": "ops",
    "OPERATOR_WEBHOOK_URL": "chat.example.com/hook",
    "OPERATOR_WEBHOOK_SECRET": "hunter2",
    "EMAIL_PORT": "smtp",
    "EMAIL_SECURITY": "ssl",
    "DEFAULT_FROM_EMAIL": "Triggers",
}
# These are wrong only by being missing, short or no keys, which is told when the rest is right.
FREE_TEXT = {
    "REDIS_SENTINEL_PASSWORD", "BIND", "METRICS_TOKEN", "PORTAL_NAME", "EMAIL_HOST", "EMAIL_HOST_USER",
    "EMAIL_HOST_PASSWORD",
}  # fmt: skip
SECRETS = {"SECRET_KEY": "hunter2", "SECRETS_ENCRYPTION_KEYS": "hunter2"}


def run(command: list[str], **changes: str) -> tuple[int, list[str]]:
    """Run a program of ours to its end; return its exit code and what it wrote on stderr."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHONWARNINGS": "ignore", **changes}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "hunter2" not in ended.stderr
    return ended.returncode, ended.stderr.splitlines()


def test_every_setting_with_a_wrong_value_is_named_in_a_line_of_its_own() -> None:
    code, lines = run([sys.executable, "manage.py", "migrate"], **WRONG)
    assert code == 1
    assert [line.split()[0] for line in lines] == [option.name for option in OPTIONS if option.name in WRONG]
    assert all(" is wrong: expected " in line for line in lines)
    assert set(WRONG) | set(SECRETS) | FREE_TEXT == {option.name for option in OPTIONS}


def test_secrets_that_are_none_are_named_and_not_shown() -> None:
    code, lines = run([sys.executable, "manage.py", "migrate"], **SECRETS)
    assert code == 1
    assert [line.split()[0] for line in lines] == ["SECRET_KEY", "SECRETS_ENCRYPTION_KEYS"]


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "manage.py", "rqworker", "events", "webhooks"],
        [sys.executable, "manage.py", "create_org", "Acme"],
        GUNICORN,
    ],
    ids=["worker", "command", "web"],
)
def test_each_program_stops_at_its_start_with_the_one_line(command: list[str]) -> None:
    code, lines = run(command, DELIVERY_TIMEOUT="eternal")
    assert code == 1
    assert lines == ["DELIVERY_TIMEOUT is wrong: expected a duration such as 30s, from 100ms to 5m."]


def test_gunicorn_s_own_settings_are_checked_with_the_others() -> None:
    code, lines = run(GUNICORN, WEB_CONCURRENCY="0", PORT="http", WEB_THREADS="many", DEBUG="perhaps")
    assert code == 1
    assert [line.split()[0] for line in lines] == ["DEBUG", "WEB_CONCURRENCY", "WEB_THREADS", "PORT"]
    assert lines[-1] == "PORT is wrong: expected a whole number from 1 to 65535."


def test_production_refuses_debug() -> None:
    random_enough = secrets.token_urlsafe(48)
    code, lines = run(
        [sys.executable, "manage.py", "migrate"], ENVIRONMENT="production", DEBUG="true", SECRET_KEY=random_enough
    )
    assert (code, lines) == (1, ["DEBUG must be false when ENVIRONMENT is production."])


def test_a_command_without_its_database_says_so_in_one_line() -> None:
    with socket.socket() as taken:  # bound and not listening: nothing else can answer on this port
        taken.bind(("127.0.0.1", 0))
        url = f"postgres://user:hunter2@127.0.0.1:{taken.getsockname()[1]}/triggers"
        for command in (["create_org", "Acme"], ["replay_deliveries", "--status", "failed", "--dry-run"]):
            code, lines = run([sys.executable, "manage.py", *command], DATABASE_URL=url, REDIS_URL=valkey.url())
            assert code == 1
            assert len(lines) == 1
            assert lines[0].startswith("The database that DATABASE_URL names can't be used: ")
            assert "Connection refused" in lines[0]


@pytest.fixture(scope="module")
def migrated() -> str:
    """Return the name of a database that is migrated and empty."""
    postgres.create_database("start_errors")
    run([sys.executable, "manage.py", "migrate", "--verbosity", "0"], DATABASE_URL=postgres.url("start_errors"))
    return "start_errors"


def _role(name: str) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        if not session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone():
            session.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'right'")  # type: ignore[arg-type]


def _url_of(role: str, database: str = "triggers") -> str:
    return postgres.url(database).replace(f"//{USER}@", f"//{role}@", 1)


@pytest.fixture(scope="module")
def untrusted() -> Iterator[int]:
    """Return a port that offers TLS as PostgreSQL does, with a certificate nobody here trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    def offer_tls(stream: socket.socket) -> None:
        stream.recv(8)  # the request for TLS
        stream.sendall(b"S")
        context.wrap_socket(stream, server_side=True).close()

    with raw_server(offer_tls) as port:
        yield port


@pytest.fixture(scope="module")
def unusable(migrated: str, untrusted: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Return a DATABASE_URL for each fault, and what its line says."""
    for role in ("locked", "without_rights"):
        _role(role)
    postgres.create_database("not_migrated")
    with psycopg.connect(postgres.url(), autocommit=True) as session:
        (hba,) = session.execute("SHOW hba_file").fetchone() or ("",)
        rules, line = Path(hba), "local all locked scram-sha-256\n"
        if not rules.read_text().startswith(line):
            rules.write_text(line + rules.read_text())
        session.execute("SELECT pg_reload_conf()")
    authority = tmp_path_factory.mktemp("ca") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(authority))
    tls = f"sslmode=verify-full&sslrootcert={authority}"
    return {
        "password": (_url_of("locked:hunter2"), "password authentication failed"),
        "host": ("postgres://user:hunter2@no-such-host.invalid/triggers", "no-such-host.invalid"),
        "database": (postgres.url("no_such_database"), "does not exist"),
        "role": (_url_of("no_such_role"), "does not exist"),
        "migrations": (postgres.url("not_migrated"), "manage.py migrate"),
        "rights": (_url_of("without_rights", migrated), "permission denied for table"),
        "certificate": (f"postgres://u@127.0.0.1:{untrusted}/x?{tls}", "certificate verify failed"),
        "option": (f"{postgres.url()}&no_such_option=1", "no_such_option"),
    }


FAULTS = ["password", "host", "database", "role", "migrations", "rights", "certificate", "option"]


# The same code tells of them everywhere: a command has every fault, the other programs the most different ones.
CASES = [
    *(("command", fault) for fault in FAULTS),
    *((program, "migrations") for program in ("worker", "web")),
    *(
        pytest.param(program, fault, marks=pytest.mark.slow)
        for program in ("worker", "web")
        for fault in ("host", "rights")
    ),
]


@pytest.mark.parametrize(("program", "fault"), CASES)
def test_a_database_that_can_t_be_used_is_one_line_that_names_the_setting(
    unusable: dict[str, tuple[str, str]], program: str, fault: str
) -> None:
    command = {
        "command": [sys.executable, "manage.py", "create_org", "Acme"],
        "worker": [sys.executable, "manage.py", "rqworker", "events", "webhooks"],
        "web": GUNICORN,
    }[program]
    url, reason = unusable[fault]
    code, lines = run(command, DATABASE_URL=url, REDIS_URL=valkey.url(), BIND=f"127.0.0.1:{free_port()}")
    assert code == 1
    assert len(lines) == 1, lines
    assert "DATABASE_URL" in lines[0]
    assert reason in lines[0]


@pytest.mark.parametrize("first", [False, True], ids=["among others", "as the first process"])
@pytest.mark.parametrize("program", ["worker", "web"])
def test_a_process_that_is_still_starting_ends_on_sigterm(program: str, first: bool) -> None:
    """The first process of a container gets no signal that it has no handler for."""
    if first and (os.geteuid() != 0 or subprocess.run([*UNSHARE, "true"], check=False).returncode):
        pytest.skip("only root can make a process the first of its own namespace, where the system allows it")
    command = GUNICORN if program == "web" else [sys.executable, "manage.py", "rqworker", "events", "webhooks"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "DATABASE_URL": f"postgres://user@127.0.0.1:{silent.getsockname()[1]}/triggers",
            "REDIS_URL": valkey.url(),
        }
        with subprocess.Popen([*(UNSHARE if first else []), *command], cwd=ROOT, env=environment) as process:
            try:
                with silent.accept()[0]:  # it has started, and waits for the database's first word
                    os.kill(children(process.pid)[0] if first else process.pid, signal.SIGTERM)
                    assert process.wait(30) == 0
            finally:
                process.kill()
