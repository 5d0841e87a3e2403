"""What only a real server shows: bodies in chunks or cut short, and the log's lines, through gunicorn."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from devstack import processes
from devstack.waiting import wait_until
from events.models import Event
from orgs.keys import create_api_key
from orgs.models import Organization
from tests.servers import postgres

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]


class Server:
    """A gunicorn of its own on the test's database."""

    def __init__(self, log: Path, key: str, port: int) -> None:
        self.log = log
        self.key = key
        self.port = port

    def send(self, head: str, body: bytes = b"", *, half_close: bool = False) -> tuple[int, dict[str, Any]]:
        """Send a request as it is; return the answer's status and its JSON.  half_close: say that no more comes."""
        text = head.replace("\n", "\r\n").replace("KEY", self.key)
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connected:
            connected.sendall(text.encode() + b"\r\n\r\n" + body)
            if half_close:
                connected.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(connected)
            answer.begin()
            content = answer.read()
            is_json = "json" in answer.headers["Content-Type"]
            return answer.status, json.loads(content) if is_json else {}

    def post(self, headers: str, body: bytes, **options: Any) -> tuple[int, dict[str, Any]]:
        """POST an event with these further header lines."""
        head = f"POST /api/events HTTP/1.1\nHost: localhost\nX-API-Key: KEY\nConnection: close\n{headers}"
        return self.send(head, body, **options)


@pytest.fixture
def server(organization: Organization, tmp_path: Path) -> Iterator[Server]:
    """Return a running server and a key for it."""
    environment = {"DATABASE_URL": postgres.url(connection.settings_dict["NAME"]), "MAX_EVENT_BYTES": "2000"}
    process, base = processes.web(tmp_path / "web.log", env=environment, workers=1)
    yield Server(tmp_path / "web.log", create_api_key(organization)[1], int(base.rsplit(":", 1)[1]))
    process.stop()


JSON = "Content-Type: application/json"
GOOD = b'{"type":"a","data":1}'


def in_chunks(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_bodies_are_bounded_however_they_are_sent_and_every_request_is_one_line_in_the_log(server: Server) -> None:
    large = b'{"type":"a","data":"%s"}' % (b"x" * 2000)
    chunked = f"{JSON}\nTransfer-Encoding: chunked"
    answers = [
        server.post(f"{JSON}\nContent-Length: {len(GOOD)}\nX-Request-Id: first", GOOD),
        server.post(chunked, in_chunks(GOOD, 4)),
        server.post(chunked, in_chunks(large, 500)),
        server.post(f"{JSON}\nContent-Length: {len(large)}", large),
        server.post(JSON, b""),
    ]
    assert [(status, answer.get("code")) for status, answer in answers] == [
        (202, None), (202, None), (413, "too_large"), (413, "too_large"),
        (400, "invalid_json"),
    ]  # fmt: skip
    assert Event.objects.count() == 2

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]

    def of_requests() -> list[dict[str, Any]]:
        return [line for line in lines() if line["event"] == "request" and line["path"] == "/api/events"]

    # Each request is logged after its answer was sent.
    wait_until(lambda: len(of_requests()) == len(answers), "a request's line is missing")
    requests = of_requests()
    assert [line["status"] for line in requests] == [202, 202, 413, 413, 400]
    for line in requests:
        assert {"method", "path", "status", "duration_ms", "request_id", "level", "timestamp"} <= set(line)
    ingested = [line for line in lines() if line["event"] == "event_ingested"]
    assert [line["outcome"] for line in ingested] == ["persisted", "persisted"]
    assert ingested[0]["request_id"] == requests[0]["request_id"] == "first"
    assert {line["event_id"] for line in ingested} == {answer["id"] for _, answer in answers[:2]}
    assert server.key not in server.log.read_text()


# What can't be read as HTTP never reaches the application.
NO_HTTP = ["BREW /api/events HTTP/1.1\nHost: localhost\nX-API-Key: KEY",
           "GET /api/events HTTP/1.1\nHost: localhost\nX-API-Key: trk_\x7f",
           "GET /api/events?cursor=\x00 HTTP/1.1\nHost: localhost\nX-API-Key: KEY",
           "GET /api/events HTTP/1.1\nHost: localhost\nX-Request-Id : a\nX-API-Key: KEY",
           "GET /api/events HTTP/1.1\nHost: localhost\nX-A: " + "x" * 9000]  # fmt: skip
ODD = ["GET /api/nonsense HTTP/1.1\nHost: localhost",
       "GET /api/events?%ff=%fe HTTP/1.1\nHost: localhost\nX-API-Key: KEY",
       "GET /api/health HTTP/1.1\nHost: evil.example",
       "GET /api/me HTTP/1.1\nHost: localhost", "GET //api//events HTTP/1.1\nHost: localhost",
       "GET /api/events/%00 HTTP/1.1\nHost: localhost\nX-API-Key: KEY",
       "GET /api/events?type=" + "x" * 5000 + " HTTP/1.1\nHost: localhost\nX-API-Key: KEY",
       "POST /api/events HTTP/1.1\nHost: localhost\nX-API-Key: KEY"]  # fmt: skip


def test_odd_requests_are_refused_and_none_is_a_fault(server: Server) -> None:
    for head in ODD:
        status, problem = server.send(f"{head}\nConnection: close")
        assert 400 <= status < 500, head
        assert problem.get("status", status) == status
        assert problem.get("code") or "//api" in head, head
    for head in NO_HTTP:
        assert 400 <= server.send(f"{head}\nConnection: close")[0] < 500, head
    assert server.post(f"{JSON}\nContent-Length: {len(GOOD)}", GOOD)[0] == 202
