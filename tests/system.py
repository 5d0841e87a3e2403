"""The system from outside: an organization's HTTP calls, and what the database and the logs show."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from devstack.stack import Stack
from devstack.waiting import wait_until

PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    document: Any


@dataclass
class Account:
    """An organization with a key that may do everything.  url: the API's base; id: empty when it isn't known."""

    url: str
    key: str
    id: str = ""

    def call(self, method: str, path: str, body: Any = None, seconds: float = 60.0) -> Answer:
        """Make one request with a JSON body.  Raises OSError when it gets no answer."""
        return self.send(method, path, b"" if body is None else json.dumps(body).encode(), seconds)

    def send(self, method: str, path: str, body: bytes = b"", seconds: float = 60.0) -> Answer:
        """Make one request on a connection of its own.  Raises OSError when it gets no answer."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        headers = {"X-API-Key": self.key, "Content-Type": "application/json", "Connection": "close"}
        try:
            connection.request(method, parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        return Answer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, json.loads(raw or b"null")
        )

    def post_event(self, number: int = 0, **members: Any) -> Answer:
        """Post one event."""
        return self.call("POST", "/api/events", {"type": "order.created", "data": {"number": number}, **members})

    def post_batch(self, *numbers: int) -> Answer:
        """Post several events in one request."""
        return self.call(
            "POST", "/api/events/batch", [{"type": "order.created", "data": {"number": number}} for number in numbers]
        )

    def make_subscription(self, url: str, *event_types: str, **options: Any) -> dict[str, Any]:
        """Subscribe `url` to `event_types` (everything when there is none); return it with its secret."""
        wanted = {"url": url, "event_types": list(event_types or ["*"]), **options}
        made = self.call("POST", "/api/subscriptions", wanted)
        assert made.status == 201, made
        document: dict[str, Any] = made.document
        return document

    def subscribe(self, url: str) -> str:
        """Subscribe `url` to everything and return the subscription's id."""
        subscription_id: str = self.make_subscription(url)["id"]
        return subscription_id


def open_account(stack: Stack, name: str = "Acme") -> Account:
    """Make an organization with a key."""
    organization = stack.make_organization(name)
    return Account(stack.url, stack.make_key(organization), organization)


def events_stored(stack: Stack) -> int:
    """Return how many events there are."""
    return int(stack.sql("SELECT count(*) FROM events_event")[0][0])


def wait_until_settled(stack: Stack, seconds: float = 60.0) -> None:
    """Wait until every event is processed and every delivery has come to its end."""
    wait_until(
        lambda: (
            not stack.sql(
                "SELECT 1 FROM events_event WHERE status = 'accepted' UNION ALL"
                " SELECT 1 FROM webhooks_delivery WHERE status IN ('pending', 'delivering') LIMIT 1"
            )
        ),
        "deliveries did not settle",
        seconds,
    )


def log_of(stack: Stack, name: str, start: int = 0) -> str:
    """Return a process's log (`web`, `worker_1`, `worker_2`) from a byte on."""
    return (stack.logs / f"{name}.log").read_bytes()[start:].decode("utf-8", "replace")


def log_size(stack: Stack, name: str) -> int:
    """Return how long a process's log is now."""
    path = stack.logs / f"{name}.log"
    return path.stat().st_size if path.exists() else 0


def assert_unavailable(answer: Answer, code: str = "database_unavailable") -> None:
    """Check that the answer is the 503 that asks the caller to come back."""
    assert answer.status == 503, answer
    assert answer.headers["content-type"] == PROBLEM
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.document["code"] == code
    assert "Traceback" not in json.dumps(answer.document)
