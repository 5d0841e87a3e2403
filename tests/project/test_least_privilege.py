"""The rights that docs/operations.md grants in PostgreSQL and Redis are all that the system needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from devstack import processes
from devstack.http_receiver import Received, Receiver, Response
from devstack.postgres import USER
from devstack.processes import ROOT
from devstack.sentinel import Server
from devstack.waiting import wait_until
from tests.servers import ENVIRONMENT, postgres

DATABASE = "least_privilege"
OWNER, APP = "triggers_owner", "triggers_app"
PASSWORD = "correct-horse-battery"

_OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
_SECTION = re.search(r"^## Least privilege\n(.*?)^## ", _OPERATIONS, re.S | re.M)
assert _SECTION
BY_SUPERUSER, BY_OWNER, ON_POSTGRES_14 = re.findall(r"```sql\n(.*?)```", _SECTION[1], re.S)
ACL = re.findall(r"^ACL (SETUSER triggers .*)$", _SECTION[1], re.M)[0]

Call = Callable[..., Any]


def _url(role: str) -> str:
    return postgres.url(DATABASE).replace(f"//{USER}@", f"//{role}@", 1)


def _sql(url: str, statements: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as session:
        rows: list[tuple[Any, ...]] = []
        for statement in filter(str.strip, statements.split(";")):
            cursor = session.execute(statement)  # type: ignore[arg-type]
            rows = cursor.fetchall() if cursor.description else []
        return rows


@pytest.fixture(scope="module")
def env() -> Iterator[dict[str, str]]:
    """Return the environment of processes that have these rights, on a database that was just migrated."""
    drop = f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE); DROP ROLE IF EXISTS {OWNER}; DROP ROLE IF EXISTS {APP}"
    _sql(postgres.url(), drop)
    _sql(postgres.url(), BY_SUPERUSER.replace("DATABASE triggers", f"DATABASE {DATABASE}"))
    ((version,),) = _sql(postgres.url(), "SELECT current_setting('server_version_num')::int")
    if version < 150000:
        _sql(postgres.url(DATABASE), ON_POSTGRES_14)
    migrating = {**ENVIRONMENT, "DATABASE_URL": _url(OWNER)}
    processes.manage("migrate", "--verbosity", "0", env=migrating)
    for _ in range(2):
        _sql(_url(OWNER), BY_OWNER)
    yield {
        **ENVIRONMENT,
        "DATABASE_URL": _url(APP),
        "DELIVERY_RETRY_SCHEDULE": "0s,100ms",
        "BREAKER_THRESHOLD": "0",
        "LOGIN_FAILURE_LIMIT": "2",
    }
    _sql(postgres.url(), drop)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Server]:
    """Return a Valkey whose only user besides its administrator has the rights of the documentation."""
    server = Server(tmp_path, "valkey").start()
    server.client().execute_command("ACL", *ACL.split())
    yield server
    server.kill()


@pytest.fixture
def denied_by_postgresql() -> Callable[[], list[str]]:
    """Return a function that returns what PostgreSQL has denied since the test began."""
    start = postgres.log.stat().st_size

    def denied() -> list[str]:
        said = postgres.log.read_bytes()[start:].decode("utf-8", "replace")
        return [line for line in said.splitlines() if "permission denied" in line or "must be owner" in line]

    return denied


@pytest.mark.slow
def test_the_roles_may_do_no_more_than_it_says(env: dict[str, str]) -> None:
    for statement in (
        "CREATE TABLE mine (id int)",
        "UPDATE orgs_auditentry SET action = ''",
        "DELETE FROM orgs_auditentry",
        "TRUNCATE events_event",
        "DELETE FROM django_migrations",
        "ALTER TABLE orgs_auditentry DISABLE TRIGGER USER",
        "CREATE EXTENSION dblink",
        "DROP TABLE events_event_default",
        "SELECT * FROM webhooks_delivery_default",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            _sql(env["DATABASE_URL"], statement)
    missing = _sql(
        postgres.url(DATABASE),
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        f" AND NOT relispartition AND NOT has_table_privilege('{APP}', oid, 'SELECT')",
    )
    assert not missing, "the documentation forgets tables"
    # Without the right, PostgreSQL 18 returns NULL, and others raise an error.
    unreadable = _sql(
        postgres.url(DATABASE),
        "SELECT seqrelid::regclass::text FROM pg_sequence"
        f" WHERE NOT has_sequence_privilege('{APP}', seqrelid, 'SELECT')",
    )
    assert not unreadable, "the documentation forgets sequences"


@pytest.mark.slow
def test_everything_works_with_the_documented_rights(
    env: dict[str, str], redis_server: Server, denied_by_postgresql: Callable[[], list[str]], tmp_path: Path
) -> None:
    given = {**env, "REDIS_URL": redis_server.url("triggers:password@")}
    organization = processes.manage("create_org", "Acme", env=given)
    key = processes.manage("create_api_key", organization, env=given)
    processes.manage(
        "createsuperuser", "--noinput", "--username", "root", "--email", "root@example.com",
        env={**given, "DJANGO_SUPERUSER_PASSWORD": PASSWORD},
    )  # fmt: skip
    web, base = processes.web(tmp_path / "web.log", env=given, workers=1)
    worker = processes.worker(tmp_path / "worker.log", given)
    try:
        with Receiver(_fail_first) as receiver:
            _use_the_api(base, key, receiver)
            _let_retention_pass(organization)
            _use_the_admin(base)
            _use_the_commands(given, organization)
            for table in ("events_event", "events_dedupkey", "webhooks_delivery", "webhooks_deliveryattempt"):
                assert _sql(postgres.url(DATABASE), f"SELECT count(*) FROM {table}") == [(0,)], table
            kept = _sql(postgres.url(DATABASE), "SELECT count(*) FROM webhooks_subscription")
            assert kept == [(1,)], "the two that were deleted are gone, now that no delivery refers to them"
            health = httpx.get(f"{base}/api/health/detailed", trust_env=False, timeout=30)
            assert (health.status_code, health.json()["workers"]) == (200, 1)
            # Counted just now: a count is kept for a minute, and a busy machine takes longer for all of the above.
            wrong = httpx.get(f"{base}/api/me", headers={"X-API-Key": "trk_x_y"}, trust_env=False, timeout=30)
            assert wrong.status_code == 401
            assert redis_server.client().keys("triggers:rate:*")
    finally:
        assert worker.stop() == 0
        web.stop()
    logs = (tmp_path / "web.log").read_text() + (tmp_path / "worker.log").read_text()
    assert not denied_by_postgresql()
    assert "permission" not in logs.lower()
    assert "Traceback" not in logs
    assert "redis_unavailable" not in logs
    denied = redis_server.client().execute_command("ACL", "LOG")
    assert not denied, denied


def _fail_first(request: Received, number: int) -> Response:
    return Response(status=500 if number <= 2 else 200)


def _use_the_api(base: str, key: str, receiver: Receiver) -> None:
    """Let a webhook fail and be replayed, fetch from an inbox, and recover: what needs rights on each table."""
    with httpx.Client(base_url=base, headers={"X-API-Key": key}, trust_env=False, timeout=30) as client:

        def call(method: str, path: str, body: Any = None) -> Any:
            response = client.request(method, path, json=body)
            assert response.status_code < 400, response.text
            return response.json() if response.content else {}

        subscription = call("POST", "/api/subscriptions", {"url": receiver.url(), "event_types": ["*"]})["id"]
        event = call("POST", "/api/events", {"type": "a", "data": 1, "dedup_id": "one"})["id"]
        call("POST", "/api/events", {"type": "a", "data": 1, "dedup_id": "one"})
        call("POST", "/api/events/batch", [{"type": "a", "data": n, "dedup_id": f"b{n}"} for n in range(3)])
        delivered = wait_until(
            lambda: (found := call("GET", "/api/deliveries?status=delivered")["data"]) and len(found) >= 2 and found,
            "nothing was delivered",
        )
        call("POST", f"/api/deliveries/{delivered[0]['id']}/retry")
        inbox = call("POST", "/api/subscriptions", {"kind": "inbox", "inbox": "orders", "event_types": ["order.*"]})
        call("POST", "/api/events", {"type": "order.created", "data": 1})
        fetched = wait_until(
            lambda: call("GET", "/api/inbox?inbox=orders&wait=20")["events"], "nothing is in the inbox"
        )
        call("POST", "/api/inbox/ack", {"inbox": "orders", "event_ids": [fetched[0]["id"]]})
        call("DELETE", f"/api/subscriptions/{inbox['id']}")
        for path in (f"/api/events/{event}", "/api/events", "/api/me", "/api/keys", "/api/audit"):
            call("GET", path)
        made = call("POST", "/api/keys", {"name": "second", "scopes": ["events:write"]})
        call("POST", f"/api/keys/{made['id']}/rotate", {})
        call("DELETE", f"/api/keys/{made['id']}")
        path = f"/api/subscriptions/{subscription}"
        call("PATCH", path, {"description": "x"})
        call("POST", f"{path}/rotate-secret", {})
        call("POST", f"{path}/disable", {})
        call("POST", "/api/events", {"type": "a", "data": 2})
        call("POST", f"{path}/enable", {})
        run = call("POST", f"{path}/recover", {"since": "2020-01-01T00:00:00Z"})["id"]
        wait_until(lambda: call("GET", f"{path}/recoveries/{run}")["status"] != "running", "the recovery doesn't end")
        other = call("POST", "/api/subscriptions", {"url": receiver.url(), "event_types": ["never"]})["id"]
        call("DELETE", f"/api/subscriptions/{other}")
    wait_until(
        lambda: (
            not _sql(
                postgres.url(DATABASE), "SELECT 1 FROM webhooks_delivery WHERE status IN ('pending', 'delivering')"
            )
        ),
        "deliveries did not settle",
    )


def _let_retention_pass(organization: str) -> None:
    """Make everything old."""
    _sql(
        postgres.url(DATABASE),
        "UPDATE events_event SET created_at = created_at - interval '90 days',"
        " processed_at = processed_at - interval '90 days', id = id;"
        "UPDATE events_dedupkey SET expires_at = now() - interval '1 day';"
        "UPDATE webhooks_delivery SET completed_at = completed_at - interval '90 days';"
        "UPDATE webhooks_bulkrun SET finished_at = finished_at - interval '90 days';"
        "UPDATE webhooks_subscription SET deleted_at = deleted_at - interval '90 days'",
    )


def _use_the_admin(base: str) -> None:
    """Log in, then create, change, and look at rows of each kind, as operators do in the admin."""
    with httpx.Client(base_url=base, trust_env=False, timeout=30, follow_redirects=True) as client:

        def post(path: str, **form: Any) -> httpx.Response:
            page = client.get(path)
            token = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
            assert token, page.text[:500]
            answer = client.post(path, data={**form, "csrfmiddlewaretoken": token[1]}, headers={"Referer": base})
            assert answer.status_code < 400, answer.text[:500]
            assert 'class="error' not in answer.text, answer.text
            return answer

        for name in ("nobody", "nobody"):
            client.post("/admin/login/")
            page = client.get("/admin/login/")
            token = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
            assert token
            client.post("/admin/login/", data={"username": name, "password": "x", "csrfmiddlewaretoken": token[1]})
        post("/admin/login/", username="root", password=PASSWORD, next="/admin/")
        home = client.get("/admin/")
        assert home.status_code == 200
        paths = sorted(set(re.findall(r'href="(/admin/[a-z]+/[a-z]+/)"', home.text)))
        assert len(paths) >= 10, paths
        for path in [*paths, "/admin/rq/", "/admin/rq/queues/0/"]:
            answer = client.get(path)
            assert answer.status_code == 200, path
        account = {"name": "Second", "events_per_minute": 100, "retention_days": 3, "is_active": "on"}
        post("/admin/orgs/organization/add/", **account)
        changed = _sql(postgres.url(DATABASE), "SELECT id FROM orgs_organization WHERE name = 'Second'")[0][0]
        post(f"/admin/orgs/organization/{changed}/change/", **account | {"name": "Third"})
        # Twice, with and without: groups and permissions of users are rows of their own.
        post("/admin/auth/group/add/", name="helpers", permissions=["1", "2"])
        helpers = _sql(postgres.url(DATABASE), "SELECT id FROM auth_group WHERE name = 'helpers'")[0][0]
        post(f"/admin/auth/group/{helpers}/change/", name="assistants", permissions=["1"])
        post("/admin/auth/user/add/", username="olga", usable_password="true", password1=PASSWORD, password2=PASSWORD)
        olga = _sql(postgres.url(DATABASE), "SELECT id FROM auth_user WHERE username = 'olga'")[0][0]
        person = {"username": "olga", "date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
        post(f"/admin/auth/user/{olga}/change/", **person, groups=[helpers], user_permissions=["1"])
        post(f"/admin/auth/user/{olga}/change/", **person)
        post(f"/admin/auth/user/{olga}/delete/", post="yes")
        post(f"/admin/auth/group/{helpers}/delete/", post="yes")
        new = PASSWORD + "2"
        post("/admin/password_change/", old_password=PASSWORD, new_password1=new, new_password2=new)
        token = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', client.get("/admin/").text)
        assert token
        client.post("/admin/logout/", data={"csrfmiddlewaretoken": token[1]}, headers={"Referer": base})
        assert "/login/" in str(client.get("/admin/").url)


# One process for all: the rights are the same, and a start takes longer than most of them.
_COMMANDS = """
import json, sys, django
django.setup()
from django.core.management import call_command
for command in json.loads(sys.argv[1]):
    call_command(*command)
"""


def _use_the_commands(env: dict[str, str], organization: str) -> None:
    commands = [
        ["purge_expired"],
        ["purge_expired"],  # again: it forgets subscriptions first, and events may have referred to them
        ["rotate_encryption_keys"],
        ["replay_deliveries", "--org", organization, "--status", "failed"],
        ["axes_list_attempts"],
        ["axes_reset_username", "nobody"],
        ["axes_reset_logs"],
        ["axes_reset_failure_logs"],
        ["clearsessions"],
        ["check"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS, json.dumps(commands)], cwd=ROOT, env={**os.environ, **env},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
