"""The API's tests, run against both doors: Django's views, and the front door over a real socket."""

from __future__ import annotations

import http.client
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from django.utils.encoding import iri_to_uri

from core import wakeups
from devstack.sockets import free_port
from devstack.waiting import wait_until
from orgs.keys import create_api_key
from orgs.models import Organization
from tests.conftest import ApiClient

# The files whose requests the front door serves itself.
BOTH_DOORS = {
    "test_bad_input",
    "test_batch",
    "test_cloudevents",
    "test_deduplication",
    "test_event_types",
    "test_events",
    "test_idempotency",
    "test_caller_cache",
    "test_limits",
    "test_daily_needs",
    "test_manners",
    "test_metrics",
    "test_tracing",
    "test_messages",
}


class Answer:
    """An HTTP response with what the tests use of Django's."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status_code = response.status
        self.content = response.read()
        self.headers = response.headers

    def __getitem__(self, name: str) -> str:
        value = self.headers[name]
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def get(self, name: str, default: Any = None) -> Any:
        return self.headers.get(name, default)

    def has_header(self, name: str) -> bool:
        return name in self.headers

    def json(self) -> Any:
        return json.loads(self.content)


class DoorClient(ApiClient):
    """An ApiClient whose requests go through the front door."""

    def __init__(self, key: str | None, port: int) -> None:
        super().__init__(key)
        self._port = port

    def request(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **headers: str) -> Any:
        """Send a request on a connection of its own."""
        given = {"X-API-Key": self.key} if self.key else {}
        content_type = headers.pop("content_type", "application/json")
        if not all(value.isprintable() for value in (*given.values(), *headers.values())):
            pytest.skip("HTTP itself refuses control characters in a header")
        data = raw if raw is not None else (json.dumps(body).encode() if body is not None else b"")
        if data:  # as Django's test client does
            given["Content-Type"] = content_type
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, iri_to_uri(path), data, {**given, **headers})
            answer = Answer(connection.getresponse())
        finally:
            connection.close()
        assert wakeups.wait_until_woken(30)
        return answer


@pytest.fixture(scope="session")
def _door(django_db_setup: None) -> Iterator[int]:
    """Serve the front door in a thread, and return its port."""
    from triggers_project.asgi import application
    from triggers_project.web_worker import WebWorker

    port = free_port()
    options = {**WebWorker.CONFIG_KWARGS, "loop": "asyncio"}
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=port, log_config=None, **options))
    thread = threading.Thread(target=server.run, name="front door")
    thread.start()
    wait_until(lambda: server.started)
    yield port
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def door(request: pytest.FixtureRequest) -> int | None:
    """Return the front door's port; None for Django's views."""
    if getattr(request, "param", "django") == "django":
        return None
    from triggers_project.asgi import events_door

    port: int = request.getfixturevalue("_door")
    events_door.authenticator.cache.reset()
    return port


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses the API once through each door."""
    name = metafunc.module.__name__.rsplit(".", 1)[-1]
    # The tests of bad input that don't concern events are about Django's views alone.
    is_about_events = name != "test_bad_input" or "event" in inspect.getsource(metafunc.function)
    if "door" in metafunc.fixturenames and name in BOTH_DOORS and is_about_events:
        transactional = pytest.mark.django_db(transaction=True)
        doors = ["django", pytest.param("front door", marks=transactional)]
        metafunc.parametrize("door", doors, indirect=True)


@pytest.fixture
def client_of(door: int | None) -> Callable[[str], ApiClient]:
    """Return a function from a key to a client."""
    return lambda key: ApiClient(key) if door is None else DoorClient(key, door)


@pytest.fixture
def api(client_of: Callable[[str], ApiClient], organization: Organization) -> ApiClient:
    """Return a client with a key of `organization` that may do everything."""
    return client_of(create_api_key(organization)[1])


@pytest.fixture
def other_api(client_of: Callable[[str], ApiClient], other_organization: Organization) -> ApiClient:
    """Return a client of the other organization."""
    return client_of(create_api_key(other_organization)[1])
