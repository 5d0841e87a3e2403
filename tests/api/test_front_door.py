"""The front door under clients that are slow, silent, or wrong, on real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Hashable, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from core import wakeups
from core.front_door.http import Request
from events.models import Event
from orgs.front_door import whose
from orgs.keys import create_api_key
from orgs.models import Organization
from triggers_project import web_worker

pytestmark = pytest.mark.django_db(transaction=True)

EVENT = b'{"type":"a","data":1}'


class Door:
    """The front door's address, and a key for it."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.key = key

    def head(self, *lines: str, path: str = "/api/events", method: str = "POST") -> bytes:
        """Return the head of a request with these further lines."""
        first = [f"{method} {path} HTTP/1.1", "Host: localhost", f"X-API-Key: {self.key}"]
        return "\r\n".join([*first, "Content-Type: application/json", *lines, "", ""]).encode()

    def whole(self, body: bytes = EVENT, *lines: str) -> bytes:
        """Return a complete request."""
        return self.head(f"Content-Length: {len(body)}", *lines) + body

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    @contextlib.contextmanager
    def connected(self, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
        """Hold connections open that have sent `first` and say no more."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(self.connect()) for _ in range(count)]
            for one in sockets:
                one.sendall(first)
            yield sockets


@pytest.fixture
def front(_door: int, organization: Organization) -> Iterator[Door]:
    """Return the front door with a key of `organization`."""
    yield Door(_door, create_api_key(organization)[1])
    assert wakeups.wait_until_woken(30)


def read(connected: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Read one response: its status, its headers by lowercase name, and its document or text."""
    response = http.client.HTTPResponse(connected)
    response.begin()
    content = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, headers, json.loads(content) if "json" in headers.get("content-type", "") else content


def test_clients_that_are_silent_or_slow_keep_nobody_waiting(front: Door) -> None:
    half_a_body = front.head("Content-Length: 1000") + b'{"type":'
    with (
        front.connected(150),
        front.connected(100, b"POST /api/events HTTP/1.1\r\nHost: loc"),
        front.connected(100, half_a_body),
        front.connect() as ours,
    ):
        ours.sendall(front.whole())
        assert read(ours)[0] == 202
    assert Event.objects.count() == 1


def test_a_head_that_is_late_ends_the_connection_and_one_that_is_not_does_not(
    front: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_worker, "HEAD_SECONDS", 0.2)
    with front.connected(1) as [silent], front.connected(1, b"POST /api/ev") as [half]:
        assert silent.recv(1) == half.recv(1) == b""
    with front.connect() as kept:
        kept.sendall(front.whole())
        assert read(kept)[0] == 202
        with front.connected(1) as [silent]:
            assert silent.recv(1) == b""  # as long as that, the kept connection has been idle
        kept.sendall(front.whole())
        assert read(kept)[0] == 202
        kept.sendall(b"POST /api/ev")
        assert kept.recv(1) == b""


@pytest.mark.parametrize(
    "lines",
    [
        ["X-A: " + "x" * 9000],
        [f"X-{number}: x" for number in range(150)],
        ["X-A: " + "x" * 70_000],
        ["X-A: " + "x" * 8000] * 9,
    ],
    ids=["a long field", "many fields", "never ends", "in all"],
)
def test_a_head_over_a_limit_is_refused(front: Door, lines: list[str]) -> None:
    with front.connect() as connected:
        connected.sendall(front.head("Content-Length: 0", *lines))
        status, headers, _ = read(connected)
        assert (status, headers["connection"]) == (400, "close")


def test_a_head_that_never_ends_is_refused_before_its_time_is_up(front: Door) -> None:
    with front.connect() as connected:
        connected.sendall(front.head()[:-2] + b"X-A: x\r\n" * 10_000)
        status, headers, _ = read(connected)
        assert (status, headers["connection"]) == (400, "close")


def test_a_url_over_the_limit_of_a_field_is_refused(front: Door) -> None:
    with front.connect() as connected:
        connected.sendall(front.head("Content-Length: 0", path="/api/me?" + "x" * 9000, method="GET"))
        status, headers, _ = read(connected)
        assert (status, headers["connection"]) == (400, "close")


def test_each_request_of_a_connection_has_the_whole_limit_for_its_head(front: Door) -> None:
    head = front.head(f"Content-Length: {len(EVENT)}", *(f"X-{number}: " + "x" * 600 for number in range(60)))
    assert len(head) > web_worker.MAX_HEAD_BYTES / 2
    with front.connect() as connected, front.connect() as another:
        for _ in range(3):
            connected.sendall(head[:-2])
            another.sendall(front.whole())
            assert read(another)[0] == 202, "what came before this has been read as well"
            connected.sendall(head[-2:] + EVENT)
            assert read(connected)[0] == 202


@pytest.mark.parametrize("body", [b"zz\r\n", b"-1\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n"])
def test_malformed_chunks_are_a_400_that_ends_the_connection(front: Door, body: bytes) -> None:
    with front.connect() as connected:
        connected.sendall(front.head("Transfer-Encoding: chunked") + body)
        status, headers, _ = read(connected)
        assert (status, headers["connection"]) == (400, "close")
        assert headers["content-type"] == "application/problem+json"
        assert connected.recv(1) == b""
    assert not Event.objects.exists()


NO_HTTP = [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"GET /a b HTTP/1.1\r\n\r\n"]


@pytest.mark.parametrize("sent", NO_HTTP, ids=["words", "TLS", "version", "blank in the URL"])
def test_what_is_no_http_is_refused_with_a_problem(front: Door, sent: bytes) -> None:
    with capture_logs() as logged, front.connect() as connected:
        connected.sendall(sent)
        status, headers, problem = read(connected)
        assert connected.recv(1) == b""
    assert (status, headers["content-type"], headers["connection"]) == (400, "application/problem+json", "close")
    assert (problem["code"], problem["detail"]) == ("bad_request", "The request is not valid HTTP/1.1.")
    assert problem["request_id"] == headers["x-request-id"]
    lines = [line for line in logged if line["event"] == "malformed_request"]
    assert [(line["client"], line["detail"]) for line in lines] == [("127.0.0.1", web_worker.NOT_HTTP)]


HOSTS = [
    (b"GET /api/health HTTP/1.1\r\n\r\n", 400),
    (b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
    (b"POST /api/events HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
    (b"GET http://localhost/api/health HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
    (b"GET /api/health HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
]


@pytest.mark.parametrize(("sent", "expected"), HOSTS, ids=["none", "two", "front door", "in the URL", "HTTP/1.0"])
def test_a_request_names_one_host(front: Door, sent: bytes, expected: int) -> None:
    with front.connect() as connected:
        connected.sendall(sent)
        status, _, document = read(connected)
    assert status == expected
    assert expected == 200 or document["detail"] == web_worker.HOST_NEEDED


def test_the_refusal_of_a_head_says_what_the_limits_are(front: Door) -> None:
    with front.connect() as connected:
        connected.sendall(front.head("X-A: " + "x" * 9000))
        _, _, problem = read(connected)
    assert problem["detail"] == web_worker.HEAD_TOO_LARGE


@pytest.mark.parametrize("after", [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nX-A: " + b"x" * 9000 + b"\r\n\r\n"])
def test_what_is_malformed_after_a_request_is_not_taken_for_its_response(front: Door, after: bytes) -> None:
    with front.connect() as connected:
        connected.sendall(front.whole() + front.whole() + after)
        received = connected.makefile("rb").read()
    assert received.count(b"HTTP/1.1 202 Accepted\r\n") == 2
    assert received.count(b"HTTP/1.1 ") == 2
    assert received.count(b"connection: close\r\n") == 1
    assert Event.objects.count() == 2


def test_what_is_malformed_after_a_response_is_refused(front: Door) -> None:
    with front.connect() as connected:
        connected.sendall(front.whole())
        assert read(connected)[0] == 202
        connected.sendall(NO_HTTP[0])
        assert read(connected)[0] == 400
        assert connected.recv(1) == b""


@pytest.mark.parametrize("path", ["/api/events", "/api/me"])
def test_a_client_that_has_ended_its_side_gets_its_responses(front: Door, path: str) -> None:
    method = "POST" if path == "/api/events" else "GET"
    request = front.whole() if method == "POST" else front.head(method=method, path=path)
    with front.connect() as connected:
        connected.sendall(request + request + b"POST /api/ev")
        connected.shutdown(socket.SHUT_WR)
        received = connected.makefile("rb").read()
    assert received.count(b"HTTP/1.1 20") == 2
    assert received.count(b"connection: close\r\n") == 1


@pytest.mark.parametrize(
    "sent", [b"", b"POST /api/ev", b"POST /api/events HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_client_that_ends_its_side_before_a_request_is_complete_is_let_go(front: Door, sent: bytes) -> None:
    with front.connect() as connected:
        connected.sendall(sent)
        connected.shutdown(socket.SHUT_WR)
        assert connected.recv(1) == b""
    assert not Event.objects.exists()


def test_django_gets_a_body_in_chunks_whole(front: Door) -> None:
    body = json.dumps({"url": "https://a.example/hook", "event_types": ["*"], "description": "x" * 300}).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:20], body[20:])) + b"0\r\n\r\n"
    with front.connect() as connected:
        connected.sendall(front.head("Transfer-Encoding: chunked", path="/api/subscriptions") + chunks)
        status, _, created = read(connected)
    assert (status, created["description"]) == (201, "x" * 300)


def test_a_body_that_nobody_wanted_is_read_so_that_the_connection_can_be_kept(front: Door) -> None:
    good, front.key = front.key, "trk_nonsense_nonsense"
    with front.connect() as connected:
        connected.sendall(front.whole(b"x" * 200_000))
        status, headers, _ = read(connected)
        assert (status, headers.get("connection")) == (401, None)
        front.key = good
        connected.sendall(front.whole(b"x" * 5_000_000))
        assert read(connected)[0] == 413
        connected.sendall(front.whole())
        assert read(connected)[0] == 202


@pytest.mark.parametrize("lines", [["Content-Length: 100000000"], ["Content-Length: 300000", "Expect: 100-continue"]])
def test_a_body_that_is_too_long_to_be_read_for_nothing_is_refused_unread(front: Door, lines: list[str]) -> None:
    with front.connect() as connected:
        connected.sendall(front.head(*lines))
        status, headers, problem = read(connected)
        assert (status, headers["connection"], problem["code"]) == (413, "close", "too_large")
        assert connected.recv(1) == b""


def test_a_body_that_takes_too_long_is_a_408(front: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.front_door.http.BODY_SECONDS", 0.2)
    monkeypatch.setattr("core.front_door.http.DRAIN_SECONDS", 0.1)
    with front.connected(1, front.head("Content-Length: 1000") + b'{"type"') as [connected]:
        status, headers, problem = read(connected)
        assert (status, headers["connection"], problem["code"]) == (408, "close", "request_timeout")
    assert not Event.objects.exists()


def test_a_body_is_taken_after_100_continue(front: Door) -> None:
    with front.connect() as connected:
        connected.sendall(front.head(f"Content-Length: {len(EVENT)}", "Expect: 100-continue"))
        assert connected.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connected.sendall(EVENT)
        assert read(connected)[0] == 202


def test_a_response_comes_in_one_piece(front: Door) -> None:
    requests = [front.whole(), front.head(method="GET", path="/api/me"), front.whole(b"{}")] * 10
    with front.connect() as connected:
        for request in requests:
            connected.sendall(request)
            head, separator, body = connected.recv(65536).partition(b"\r\n\r\n")
            assert separator
            assert re.search(rb"content-length: (\d+)", head.lower()).group(1) == b"%d" % len(body)  # type: ignore[union-attr]


def test_requests_sent_at_once_on_one_connection_are_served_in_their_order(front: Door) -> None:
    with front.connect() as connected:
        connected.sendall(front.whole() + front.head(method="GET", path="/api/me") + front.whole(b"{}") + front.whole())
        # One reader for all: responses that arrive together would be lost with the first one's buffer.
        with connected.makefile("rb") as stream:
            statuses = []
            for _ in range(4):
                statuses.append(int(stream.readline().split()[1]))
                stream.read(int(http.client.parse_headers(stream)["Content-Length"]))
    assert statuses == [202, 200, 400, 202]


@pytest.mark.parametrize("framing", ["Content-Length: 60", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("pieces", [1, 2, 60])
def test_a_body_behind_an_upgrade_is_a_body_and_no_other_request(front: Door, framing: str, pieces: int) -> None:
    hidden = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n".ljust(60)
    upgrade = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]
    length = len(EVENT)
    chunked = "chunked" in framing
    good = b"%x\r\n%b\r\n0\r\n\r\n" % (length, EVENT) if chunked else EVENT
    bad = b"3c\r\n%b\r\n0\r\n\r\n" % hidden if chunked else hidden
    for body, field, expected in (
        (bad, framing, 400),
        (good, framing if chunked else f"Content-Length: {length}", 202),
        (b"", "Content-Length: 0", 400),
    ):
        with front.connect() as connected:
            sent = front.head(field, *upgrade) + body + front.head(method="GET", path="/api/me")
            size = -(-len(sent) // pieces)
            for start in range(0, len(sent), size):
                connected.sendall(sent[start : start + size])
            with connected.makefile("rb") as stream:
                statuses = []
                for _ in range(2):
                    statuses.append(int(stream.readline().split()[1]))
                    content = stream.read(int(http.client.parse_headers(stream)["Content-Length"]))
            assert statuses == [expected, 200]
            assert b"organization" in content  # of /api/me
    assert Event.objects.count() == 1


@pytest.mark.parametrize(
    "line", ["SCRIPT_NAME: /evil", "Script-Name: /evil", "X_Forwarded_For: 1.2.3.4", "X_API_KEY: x"]
)
def test_headers_that_pass_for_others_are_not_believed(front: Door, line: str) -> None:
    with front.connect() as connected:
        connected.sendall(front.head(line, "Content-Length: 0", method="GET", path="/"))
        status, headers, _ = read(connected)
        assert (status, headers["location"]) == (302, "/api/docs")
        connected.sendall(front.head(line, "Content-Length: 0", method="GET", path="/api/me"))
        assert read(connected)[0] == 200
    good, front.key = front.key, ""
    with front.connect() as connected:
        connected.sendall(front.head("X_API_Key: " + good, "Content-Length: 0", method="GET", path="/api/me"))
        assert read(connected)[0] == 401


def test_the_front_door_sends_the_headers_that_django_sends(front: Door) -> None:
    with front.connect() as connected:
        connected.sendall(front.whole())
        _, ours, _ = read(connected)
        connected.sendall(front.head("Content-Length: 0", path="/api/subscriptions"))
        _, djangos, _ = read(connected)
    of_the_answer = {"content-type", "location", "ratelimit", "ratelimit-policy", "allow", "vary"}
    assert set(ours) - of_the_answer == set(djangos) - of_the_answer
    for name in set(ours) - of_the_answer - {"x-request-id", "x-response-time", "content-length", "date"}:
        assert ours[name] == djangos[name]


def test_a_large_file_is_streamed_whole(front: Door) -> None:
    path = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
    with front.connect() as connected:
        connected.sendall(front.head(method="GET", path=path))
        status, headers, content = read(connected)
    assert (status, len(content)) == (200, int(headers["content-length"]))
    assert len(content) > 1_000_000


def test_a_working_key_s_requests_wait_with_its_organization_s_and_all_others_with_their_network_s(
    front: Door, organization: Organization
) -> None:
    def asked_with(key: str) -> Hashable:
        scope = {"headers": [(b"x-api-key", key.encode())], "client": ("2001:db8::7", 1)}
        return whose(Request(scope, None, ""))  # type: ignore[arg-type]

    assert asked_with(front.key) == "2001:db8::"
    with front.connect() as connected:
        connected.sendall(front.head(method="GET", path="/api/me"))
        assert read(connected)[0] == 200
    assert asked_with(front.key) == organization.id
    assert asked_with("trk_nonsense_nonsense") == "2001:db8::"
