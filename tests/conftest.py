"""Fixtures for every test: organizations, keys, an API client, receivers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from django.db import connection
from django.test import Client
from django_redis import get_redis_connection

from core import ratelimits, wakeups
from core import redis as core_redis
from core.garbage_collection import freeze_gc
from devstack.http_receiver import Receiver
from devstack.stack import Stack
from events import backlog
from orgs.failed_authentications import failed_authentications
from orgs.keys import create_api_key
from orgs.models import Organization
from orgs.verified_keys import verified_keys
from tests import flush
from tests.servers import HOME
from tests.system import Account, open_account
from triggers_project import urls  # registers the admin's pages
from webhooks import subscriptions
from webhooks.models import Subscription

__all__ = ["urls"]

# How fast a machine makes examples says nothing about the code.
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: "/test_make_run.py" not in item.nodeid)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is loaded, as a web process does."""
    freeze_gc()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    """Let the tests' own clean-up empty the audit log, which the database refuses otherwise."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE orgs_auditentry DISABLE TRIGGER orgs_auditentry_no_truncate")
    flush.install()


@pytest.fixture(scope="session")
def django_db_modify_db_settings_xdist_suffix() -> None:
    """Leave the database's name alone: each of pytest-xdist's processes has a server for itself."""


@pytest.fixture(autouse=True)
def _clean_slate() -> None:
    """Forget what processes remember between requests: Redis, keys, rates, the backlog, a Redis outage."""
    assert wakeups.wait_until_woken(30)
    get_redis_connection("default").flushall()
    core_redis.breaker.reset()
    ratelimits.reset()
    verified_keys.reset()
    failed_authentications.reset()
    backlog.estimate.reset()


@pytest.fixture
def organization(db: None) -> Organization:
    """Return an organization."""
    return Organization.objects.create(name="Acme")


@pytest.fixture
def other_organization(db: None) -> Organization:
    """Return another organization, whose rows are nobody else's business."""
    return Organization.objects.create(name="Other")


class ApiClient:
    """Calls the API in this process, as the holder of a key, with JSON in and out."""

    def __init__(self, key: str | None) -> None:
        self.key = key
        self._client = Client(raise_request_exception=False)

    def request(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str) -> Any:
        """Send a request; `body` is JSON, `raw` goes as it is.  The response has `.json()`."""
        given = {"X-API-Key": self.key} if self.key else {}
        content_type = headers.pop("content_type", "application/json")
        data = raw if raw is not None else (json.dumps(body).encode() if body is not None else b"")
        answer = self._client.generic(method, path, data, content_type=content_type, headers={**given, **headers})
        assert wakeups.wait_until_woken(30)
        return answer

    def get(self, path: str, **headers: str) -> Any:
        """GET."""
        return self.request("GET", path, **headers)

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        """POST JSON."""
        return self.request("POST", path, {} if body is None and "raw" not in options else body, **options)

    def patch(self, path: str, body: Any) -> Any:
        """PATCH JSON."""
        return self.request("PATCH", path, body)

    def delete(self, path: str) -> Any:
        """DELETE."""
        return self.request("DELETE", path)


@pytest.fixture
def api(organization: Organization) -> ApiClient:
    """Return a client with a key of `organization` that may do everything."""
    return ApiClient(create_api_key(organization)[1])


@pytest.fixture
def other_api(other_organization: Organization) -> ApiClient:
    """Return a client of the other organization."""
    return ApiClient(create_api_key(other_organization)[1])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a webhook receiver on a real socket, answering 200."""
    with Receiver() as running:
        yield running


@pytest.fixture
def subscription(organization: Organization) -> Subscription:
    """Return a subscription of `organization` to everything, at an address that nobody listens on."""
    return subscriptions.create(organization.id, url="http://127.0.0.1:9/", event_types=["*"])[0]


@pytest.fixture(scope="session")
def servers() -> Iterator[Stack]:
    """Return another PostgreSQL and Valkey, which tests may stop, freeze and kill, with nothing running on them."""
    stack = Stack(HOME / "system")
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def stack(servers: Stack) -> Iterator[Stack]:
    """Return the servers, up and empty, with no logs; what a test starts on them ends with it."""
    servers.postgres.start()
    servers.valkey.resume()
    servers.valkey.start()
    servers.empty()
    for log in servers.logs.glob("*.log"):
        log.unlink()
    yield servers
    servers.postgres.start()
    servers.stop_processes()


@pytest.fixture
def account(stack: Stack) -> Account:
    """Return an organization with a key."""
    return open_account(stack)
