"""The law of the wire, over real sockets: what is stored is sent, no response is another's, a status is a status."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import itertools
import socket
import ssl
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from devstack.sockets import free_port
from devstack.waiting import wait_until
from tests.security.listeners import Listener, Names, listen, proxy
from tests.webhooks.helpers import raw_server, read_request
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.connect import open_socket
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.http.errors import ConnectFailed
from webhooks.destinations.http.resolver import MAX_ADDRESSES
from webhooks.destinations.outcome import Failure, Outcome

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Step = Callable[[HttpClient], Any]


def run(*steps: Any, **egress: Any) -> list[Outcome]:
    """Do the steps with one client, on one loop: send to a URL, or await what a function of the client returns."""

    async def work() -> list[Outcome]:
        client = HttpClient(Egress(**{"timeout": 20.0, "body_bytes": 1024, "allowed_networks": LOOPBACK, **egress}))
        outcomes = []
        try:
            for step in steps:
                if isinstance(step, str):
                    outcomes.append(await client.send(step, [("webhook-id", "x")], b"{}"))
                else:
                    await step(client)
        finally:
            await client.aclose()
        return outcomes

    return asyncio.run(work())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def reset(stream: socket.socket) -> None:
    """Close with a reset instead of an end."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def unacknowledged_bytes(stream: socket.socket) -> int:
    """Return how much of what was sent the peer's system has not acknowledged (SIOCOUTQ, tcp(7))."""
    (number,) = struct.unpack("i", fcntl.ioctl(stream, termios.TIOCOUTQ, b"\0" * 4))
    return int(number)


class Endpoint:
    """An endpoint whose connections each follow a script: what is sent after the first request, the second, ….

    A script's entry is bytes, or a function of the socket.  After its last entry the connection is closed.  The last
    script is the one of all further connections.
    """

    def __init__(self, *scripts: list[Any]) -> None:
        self._scripts = itertools.chain(scripts, itertools.repeat(scripts[-1]))
        self.connections = 0
        self.requests: list[bytes] = []
        self.port = 0

    def handle(self, stream: socket.socket) -> None:
        self.connections += 1
        for act in next(self._scripts):
            request = read_request(stream)
            if not request:
                return
            self.requests.append(request)
            if callable(act):
                act(stream)
            else:
                stream.sendall(act)

    @contextlib.contextmanager
    def running(self, context: ssl.SSLContext | None = None) -> Iterator[str]:
        """Run it; yields its URL without a path."""
        with raw_server(self.handle, context) as self.port:
            scheme, host = ("https", "localhost") if context else ("http", "127.0.0.1")
            yield f"{scheme}://{host}:{self.port}"


# --- the request target -------------------------------------------------------------------------------

# What follows the authority in the URL, and the target that goes over the wire.
TARGETS = {
    "/hook?sig=a%2Fb": "/hook?sig=a%2Fb",
    "/hook?sig=a%2fb%3d%3D&x=%41": "/hook?sig=a%2fb%3d%3D&x=%41",
    "/p%3Aq": "/p%3Aq",
    "/%7Euser/~user": "/%7Euser/~user",
    "/a/../b": "/a/../b",
    "/a/./b/": "/a/./b/",
    "/%2e%2e/b": "/%2e%2e/b",
    "//x": "//x",
    "//x//?//": "//x//?//",
    "/%zz%": "/%zz%",
    "": "/",
    "?": "/?",
    "?a=b": "/?a=b",
    "/?": "/?",
    "/x?": "/x?",
    "/x??a?b": "/x??a?b",
    "/a;b;c=d?e;f": "/a;b;c=d?e;f",
    "/a+b%20c?d+e%20f": "/a+b%20c?d+e%20f",
    "/a|b^c`d{e}\"<f>": "/a|b^c`d{e}\"<f>",
    "/a[0]?b[]=c": "/a[0]?b[]=c",
    "/'()*!$&,=:@": "/'()*!$&,=:@",
    "/?http://other.example/@x": "/?http://other.example/@x",
    "/x#": "/x",
}  # fmt: skip


def lines(listener: Listener) -> list[str]:
    return [request.line for request in listener.requests]


def test_the_target_is_the_stored_url_s_byte_for_byte() -> None:
    with listen("127.0.0.1") as endpoint:
        outcomes = run(*(f"http://127.0.0.1:{endpoint.port}{rest}" for rest in TARGETS))
    assert {outcome.status_code for outcome in outcomes} == {200}, outcomes
    assert lines(endpoint) == [f"POST {target} HTTP/1.1" for target in TARGETS.values()]


def test_the_target_is_the_stored_url_s_with_tls_and_through_a_tunnel(authority: trustme.CA, ca_file: str) -> None:
    with listen("127.0.0.1", context=tls(authority, "localhost")) as endpoint, proxy() as way_out:
        urls = [f"https://localhost:{endpoint.port}{rest}" for rest in TARGETS]
        run(*urls, ca_file=ca_file)
        assert lines(endpoint) == [f"POST {target} HTTP/1.1" for target in TARGETS.values()]
        endpoint.requests.clear()
        run(*urls, ca_file=ca_file, proxy_url=f"http://127.0.0.1:{way_out.port}")
        assert lines(endpoint) == [f"POST {target} HTTP/1.1" for target in TARGETS.values()]
        assert lines(way_out) == [f"CONNECT localhost:{endpoint.port} HTTP/1.1"]


def test_the_target_is_the_stored_url_s_in_absolute_form_through_a_proxy() -> None:
    with proxy() as way_out:
        run(*(f"http://shop.example{rest}" for rest in TARGETS), proxy_url=f"http://127.0.0.1:{way_out.port}")
    assert lines(way_out) == [f"POST http://shop.example{target} HTTP/1.1" for target in TARGETS.values()]


@pytest.mark.parametrize(
    ("authority_part", "host"),
    [
        ("shop.example", "shop.example"),
        ("shop.example:80", "shop.example"),
        ("shop.example:443", "shop.example:443"),
        ("shop.example:8080", "shop.example:8080"),
        ("SHOP.Example", "shop.example"),
        ("shop.example.", "shop.example."),
        ("[2606:4700::1]", "[2606:4700::1]"),
        ("[2606:4700::1]:8080", "[2606:4700::1]:8080"),
    ],
)
def test_the_host_header_has_a_port_only_if_it_is_not_the_scheme_s_own(authority_part: str, host: str) -> None:
    with proxy() as way_out:
        run(f"http://{authority_part}/x", proxy_url=f"http://127.0.0.1:{way_out.port}")
    [request] = way_out.requests
    assert (request.line, request.headers["host"]) == (f"POST http://{host}/x HTTP/1.1", host)


def test_an_ipv6_literal_is_called_directly_with_tls_and_through_a_tunnel(authority: trustme.CA, ca_file: str) -> None:
    with listen("::1") as plain, listen("::1", context=tls(authority, "::1")) as secure:
        outcomes = run(f"http://[::1]:{plain.port}/p%3Aq", f"https://[::1]:{secure.port}/p%3Aq", ca_file=ca_file)
        assert [outcome.status_code for outcome in outcomes] == [200, 200]
        assert plain.requests[0].headers["host"] == f"[::1]:{plain.port}"
        assert secure.requests[0].headers["host"] == f"[::1]:{secure.port}"
        assert lines(plain) == lines(secure) == ["POST /p%3Aq HTTP/1.1"]
    with listen("127.0.0.1", context=tls(authority, "::1")) as behind, proxy() as way_out:
        [outcome] = run(f"https://[::1]:{behind.port}/x", ca_file=ca_file, proxy_url=f"http://127.0.0.1:{way_out.port}")
    assert outcome.status_code == 200
    assert lines(way_out) == [f"CONNECT [::1]:{behind.port} HTTP/1.1"]


def test_a_header_that_would_end_its_line_is_not_sent() -> None:
    async def send(client: HttpClient) -> None:
        for value in ("a\r\nx: y", "a\nb", "a\rb", "a\0b"):
            outcome = await client.send(f"http://127.0.0.1:{endpoint.port}/", [("x-test", value)], b"{}")
            assert outcome.failure is Failure.INTERNAL_ERROR
            assert "a" not in outcome.detail.split(" at ")[0].removeprefix("ValueError")

    with listen("127.0.0.1") as endpoint:
        run(send)
        assert endpoint.connections == 0


# --- whose response it is -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "tls"])
@pytest.mark.parametrize("loop_runs", [True, False], ids=["seen by the loop", "still in the kernel"])
@pytest.mark.parametrize("surplus", [OK, b"\r\n", b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n"])
def test_what_comes_on_an_idle_connection_is_nobody_s_response(
    authority: trustme.CA, ca_file: str, way: str, loop_runs: bool, surplus: bytes
) -> None:
    """A's endpoint responds, and again when A is done: B's webhook to the same host and port is really sent."""
    sent, go = threading.Event(), threading.Event()

    def respond_twice(stream: socket.socket) -> None:
        stream.sendall(OK)
        go.wait(20)
        stream.sendall(surplus)
        # On a busy machine the kernel may bring it later: it is there once it is acknowledged.
        wait_until(lambda: not unacknowledged_bytes(stream), "the client's system doesn't take it")
        sent.set()

    async def wait(client: HttpClient) -> None:
        go.set()
        if loop_runs:
            await asyncio.to_thread(sent.wait, 20)
            await asyncio.sleep(0.05)
        else:
            sent.wait(20)  # the loop stands still: nobody has read yet

    endpoint = Endpoint([respond_twice, OK, OK], [OK, OK])
    with endpoint.running(tls(authority, "localhost") if way == "tls" else None) as url:
        a, b = run(f"{url}/a", wait, f"{url}/b", ca_file=ca_file)
    assert (a.status_code, b.status_code) == (200, 200)
    assert [request.split(b" ")[1] for request in endpoint.requests] == [b"/a", b"/b"]
    assert endpoint.connections == 2


@pytest.mark.parametrize("way", ["plain", "tls"])
@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\nno" + OK,
        b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n" + OK,
        b"HTTP/1.1 500 Oops\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n" + OK,
        b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n" + OK * 3000,
    ],
)
def test_surplus_bytes_close_the_connection(authority: trustme.CA, ca_file: str, way: str, response: bytes) -> None:
    endpoint = Endpoint([response, response])
    with endpoint.running(tls(authority, "localhost") if way == "tls" else None) as url:
        outcomes = run(f"{url}/a", f"{url}/b", ca_file=ca_file)
    assert [outcome.status_code for outcome in outcomes] == [500, 500]
    assert len(endpoint.requests) == endpoint.connections == 2


@pytest.mark.parametrize("filled", [8192, 16384, 65536])
def test_a_response_that_ends_where_a_read_ends_hides_nothing_behind_it(
    authority: trustme.CA, ca_file: str, filled: int
) -> None:
    """With TLS, what is decrypted comes in pieces: the next webhook must not get the piece that follows."""
    head = b"HTTP/1.1 500 Oops\r\ncontent-length: %d\r\n\r\n"
    body = b"x" * (filled - len(head % filled))
    response = head % len(body) + body
    endpoint = Endpoint([response.ljust(filled, b"x") + OK, OK])
    with endpoint.running(tls(authority, "localhost")) as url:
        outcomes = run(*[f"{url}/"] * 3, ca_file=ca_file, body_bytes=100_000)
    assert [outcome.status_code for outcome in outcomes] == [500] * 3
    assert len(endpoint.requests) == endpoint.connections == 3


def test_data_before_the_request_of_a_new_connection_is_no_response_to_it() -> None:
    def greet(stream: socket.socket) -> None:
        stream.sendall(b"220 mail.example ESMTP\r\n")
        read_request(stream)

    with raw_server(greet) as port:
        [outcome] = run(f"http://127.0.0.1:{port}/")
    assert outcome.failure is Failure.INVALID_RESPONSE


# --- kept connections that die ------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "tls", "proxy", "tunnel"])
@pytest.mark.parametrize(
    "die",
    [
        pytest.param(lambda stream: stream.close(), id="with an end"),
        pytest.param(reset, id="with a reset"),
        pytest.param(
            lambda stream: stream.sendall(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n"), id="with 408"
        ),
    ],
)
def test_a_kept_connection_that_dies_before_its_response_costs_no_attempt(
    authority: trustme.CA, ca_file: str, way: str, die: Callable[[socket.socket], None]
) -> None:
    endpoint = Endpoint([OK, die], [OK, OK])
    with endpoint.running(tls(authority, "localhost") if way in {"tls", "tunnel"} else None) as url, proxy() as way_out:
        egress: dict[str, Any] = {"ca_file": ca_file}
        if way == "tunnel":
            egress["proxy_url"] = f"http://127.0.0.1:{way_out.port}"
        if way == "proxy":  # the endpoint itself plays the proxy
            egress["proxy_url"], url = url, "http://shop.example"
        outcomes = run(f"{url}/a", f"{url}/b", f"{url}/c", **egress)
    assert [outcome.status_code for outcome in outcomes] == [200] * 3, outcomes
    assert endpoint.connections == 2
    paths = [request.split(b" ")[1].rpartition(b"/")[2] for request in endpoint.requests]
    assert paths == [b"a", b"b", b"b", b"c"]


@pytest.mark.parametrize("way", ["plain", "tls"])
def test_a_kept_connection_that_was_closed_meanwhile_is_not_used(authority: trustme.CA, ca_file: str, way: str) -> None:
    closed = threading.Event()

    def respond_and_close(stream: socket.socket) -> None:
        stream.sendall(OK)
        go.wait(20)
        stream.close()
        closed.set()

    async def wait(client: HttpClient) -> None:
        go.set()
        closed.wait(20)

    go = threading.Event()
    endpoint = Endpoint([respond_and_close], [OK])
    with endpoint.running(tls(authority, "localhost") if way == "tls" else None) as url:
        outcomes = run(f"{url}/a", wait, f"{url}/b", ca_file=ca_file)
    assert [outcome.status_code for outcome in outcomes] == [200, 200]
    assert len(endpoint.requests) == 2


def test_the_request_goes_out_at_most_once_more() -> None:
    endpoint = Endpoint([OK, lambda stream: stream.close()], [lambda stream: stream.close()])
    with endpoint.running() as url:
        first, second = run(f"{url}/a", f"{url}/b")
    assert (first.status_code, second.failure) == (200, Failure.CONNECTION_LOST)
    assert [request.split(b" ")[1] for request in endpoint.requests] == [b"/a", b"/b", b"/b"]


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nconte"])
def test_a_kept_connection_that_dies_after_the_first_byte_is_lost(begun: bytes) -> None:
    endpoint = Endpoint([OK, begun], [OK])
    with endpoint.running() as url:
        first, second = run(f"{url}/a", f"{url}/b")
    assert (first.status_code, second.failure) == (200, Failure.CONNECTION_LOST)
    assert len(endpoint.requests) == 2


def test_a_new_connection_that_dies_is_lost() -> None:
    endpoint = Endpoint([lambda stream: stream.close()])
    with endpoint.running() as url:
        [outcome] = run(f"{url}/a")
    assert outcome.failure is Failure.CONNECTION_LOST
    assert outcome.detail == "The endpoint closed the connection without a response."
    assert endpoint.connections == 1


def test_a_408_of_a_new_connection_is_the_endpoint_s_own() -> None:
    endpoint = Endpoint([b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n"])
    with endpoint.running() as url:
        [outcome] = run(f"{url}/a")
    assert (outcome.status_code, endpoint.connections) == (408, 1)


# --- a status is a status -----------------------------------------------------------------------------

GARBAGE = b"\x00\xff not HTTP \r\n\r\n"


@pytest.mark.parametrize("way", ["plain", "tls"])
@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 204 No Content\r\n\r\n" + GARBAGE,
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" + GARBAGE,
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" + GARBAGE,
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + GARBAGE,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: x\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n" + GARBAGE,
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + GARBAGE,
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_nothing_after_the_status_and_its_headers_makes_a_2xx_a_failure(
    authority: trustme.CA, ca_file: str, way: str, response: bytes
) -> None:
    def in_two(stream: socket.socket) -> None:
        head, _, rest = response.partition(b"\r\n\r\n")
        stream.sendall(head + b"\r\n\r\n")
        stream.sendall(rest)

    endpoint = Endpoint([response], [in_two])
    with endpoint.running(tls(authority, "localhost") if way == "tls" else None) as url:
        outcomes = run(f"{url}/a", f"{url}/b", ca_file=ca_file)
    for outcome in outcomes:
        assert outcome.failure is None, outcome
        assert outcome.status_code in {200, 204}
    assert endpoint.connections == 2


def test_a_broken_body_of_a_failure_leaves_it_that_failure() -> None:
    endpoint = Endpoint([b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ntransfer-encoding: chunked\r\n\r\nzz"])
    with endpoint.running() as url:
        [outcome] = run(url)
    assert (outcome.status_code, outcome.failure, outcome.retry_after) == (503, Failure.HTTP_STATUS, "7")
    assert outcome.detail == "The response's body broke off."


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n" + OK,
        b"HTTP/2 200 OK\r\n\r\n",
    ],
)
def test_a_head_that_is_not_valid_is_an_invalid_response(response: bytes) -> None:
    endpoint = Endpoint([response])
    with endpoint.running() as url:
        [outcome] = run(url)
    assert (outcome.failure, outcome.status_code) == (Failure.INVALID_RESPONSE, None)
    assert outcome.detail.startswith("Not a valid HTTP response: ")


def test_a_response_that_comes_while_the_request_is_still_being_sent_counts() -> None:
    """An endpoint refuses by the headers alone, and closes with most of the body unread."""

    def refuse(stream: socket.socket) -> None:
        stream.recv(1000)
        stream.sendall(b"HTTP/1.1 413 Too large\r\ncontent-length: 0\r\n\r\n")
        answered.wait(20)

    async def send(client: HttpClient) -> None:
        outcome = await client.send(f"http://127.0.0.1:{port}/", [], bytes(64 * 2**20))
        answered.set()
        assert outcome.status_code == 413

    answered = threading.Event()
    with raw_server(refuse) as port:
        run(send)


# --- bounds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="interim responses"),
        pytest.param(b"HTTP/1.1 102 Processing\r\nx: y\r\n\r\n", id="interim responses with headers"),
        pytest.param(b"x-filler: y\r\n", id="headers"),
        pytest.param(b"y", id="one header"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000], ids=["bit by bit", "in blocks"])
def test_a_flood_before_the_status_ends_the_attempt_and_leaves_the_others_alone(piece: bytes, size: int) -> None:
    start = b"" if piece.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nx: "
    sent: list[int] = []

    def flood(stream: socket.socket) -> None:
        stream.sendall(start)
        number = len(sent)
        sent.append(0)
        with contextlib.suppress(OSError):
            while True:
                stream.sendall(piece * size)
                sent[number] += len(piece) * size

    async def send(client: HttpClient) -> None:
        urls = [f"{url}/{number}" for number in range(10)] + [f"http://127.0.0.1:{good.port}/"] * 10
        outcomes = await asyncio.gather(*(client.send(url, [], b"{}") for url in urls))
        assert [outcome.failure for outcome in outcomes[:10]] == [Failure.INVALID_RESPONSE] * 10
        assert [outcome.status_code for outcome in outcomes[10:]] == [200] * 10

    endpoint = Endpoint([flood])
    with endpoint.running() as url, listen("127.0.0.1") as good:
        run(send)
    # What is read is bounded; beyond it is what the kernel's buffers take.
    assert max(sent) < 32 * 2**20


def test_a_flood_of_tiny_chunks_ends_with_what_is_kept() -> None:
    def flood(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                stream.sendall(b"1\r\nx\r\n" * 1000)

    endpoint = Endpoint([flood])
    with endpoint.running() as url:
        [outcome] = run(url)
    assert (outcome.status_code, outcome.failure, outcome.body) == (200, None, "x" * 1024)


def test_a_flood_on_an_idle_connection_closes_it() -> None:
    ended = threading.Event()

    def flood(stream: socket.socket) -> None:
        stream.sendall(OK)
        try:
            while True:
                stream.sendall(b"x" * 10_000)
        except OSError:
            ended.set()

    async def wait(client: HttpClient) -> None:
        assert await asyncio.to_thread(ended.wait, 20)

    endpoint = Endpoint([flood])
    with endpoint.running() as url:
        [outcome] = run(url, wait)
    assert outcome.status_code == 200


def test_canceling_closes_the_connection() -> None:
    got, ended = threading.Event(), threading.Event()

    def handle(stream: socket.socket) -> None:
        got.set()
        with contextlib.suppress(OSError):
            stream.recv(1)
        ended.set()

    def respond_in_part(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx")
        handle(stream)

    async def cancel(client: HttpClient) -> None:
        task = asyncio.create_task(client.send(url, [], b"{}"))
        await asyncio.to_thread(got.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 20)
        got.clear()
        ended.clear()

    endpoint = Endpoint([handle], [respond_in_part])
    with endpoint.running() as url:
        run(cancel, cancel)
    assert endpoint.connections == 2


# --- the pool -----------------------------------------------------------------------------------------


def test_the_connection_used_last_is_used_first_and_the_number_kept_is_bounded() -> None:
    async def send(client: HttpClient) -> None:
        async def at_once(number: int) -> None:
            outcomes = await asyncio.gather(*(client.send(url, [], b"{}") for _ in range(number)))
            assert {outcome.status_code for outcome in outcomes} == {200}

        await at_once(6)
        assert endpoint.connections == 6
        await at_once(3)
        assert endpoint.connections == 6
        await at_once(5)
        assert endpoint.connections == 8, "three were kept"

    with listen("127.0.0.1") as endpoint:
        url = f"http://127.0.0.1:{endpoint.port}/"
        run(send, connections=3)


def test_connections_to_many_endpoints_are_bounded_together() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listen("127.0.0.1")) for _ in range(4)]
        urls = [f"http://127.0.0.1:{listener.port}/" for listener in listeners]
        run(*urls, *reversed(urls), connections=2)
    assert [listener.connections for listener in listeners] == [2, 2, 1, 1]


def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.destinations.http.pool.IDLE_SECONDS", 0.1)
    ended = threading.Event()

    def respond(stream: socket.socket) -> None:
        stream.sendall(OK)
        with contextlib.suppress(OSError):
            stream.recv(1)
        ended.set()

    async def wait(client: HttpClient) -> None:
        assert await asyncio.to_thread(ended.wait, 20)

    endpoint = Endpoint([respond])
    with endpoint.running() as url:
        run(url, wait, url)
    assert endpoint.connections == 2


def test_closing_the_client_closes_its_connections() -> None:
    ended = threading.Semaphore(0)

    def respond(stream: socket.socket) -> None:
        while read_request(stream):
            stream.sendall(OK)
        ended.release()

    async def send(client: HttpClient) -> None:
        await asyncio.gather(*(client.send(f"http://127.0.0.1:{port}/", [], b"{}") for _ in range(5)))

    with raw_server(respond) as port:
        run(send)
        assert all(ended.acquire(timeout=20) for _ in range(5))


# --- names and addresses ------------------------------------------------------------------------------


@pytest.fixture
def names() -> Iterator[Names]:
    """Return a name server; its address is in `names.server`."""
    server = Names()
    with server.running() as address:
        server.server = address  # type: ignore[attr-defined]
        yield server


def test_the_next_address_is_called_when_one_refuses_or_hangs(names: Any) -> None:
    with listen("127.0.0.2") as endpoint, socket.create_server(("127.0.0.3", endpoint.port), backlog=0) as hanging:
        fillers = [socket.socket() for _ in range(3)]  # they fill the queue of the one that accepts nobody
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(hanging.getsockname())
        names.records["refuses.example"] = ["127.0.0.4", "127.0.0.2"]
        names.records["hangs.example"] = ["127.0.0.3", "127.0.0.2"]
        names.records["both.example"] = ["::1", "127.0.0.2"]
        urls = [f"http://{name}.example:{endpoint.port}/" for name in ("refuses", "hangs", "both") for _ in range(2)]
        outcomes = run(*urls, dns_servers=(names.server,))
        for filler in fillers:
            filler.close()
    assert [outcome.status_code for outcome in outcomes] == [200] * 6, outcomes


def test_not_all_of_many_addresses_are_called() -> None:
    called: list[str] = []
    of_4 = [f"127.0.1.{number}" for number in range(1, 30)]
    of_6 = [f"::ffff:127.0.1.{number}" for number in range(1, 30)]
    addresses = [ipaddress.ip_address(text) for text in of_4 + of_6]
    with pytest.raises(ConnectFailed):
        asyncio.run(open_socket(addresses, free_port(), lambda address, port: called.append(str(address))))
    assert len(called) == 2 * MAX_ADDRESSES
    assert set(called) == {str(address) for address in addresses[:MAX_ADDRESSES] + addresses[29 : 29 + MAX_ADDRESSES]}


def test_addresses_are_remembered_for_their_time_and_asked_for_once(names: Any) -> None:
    names.records["shop.example"] = ["127.0.0.1"]

    async def at_once(client: HttpClient) -> None:
        outcomes = await asyncio.gather(*(client.send(url, [], b"{}") for _ in range(20)))
        assert {outcome.status_code for outcome in outcomes} == {200}

    with listen("127.0.0.1") as endpoint:
        endpoint.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        url = f"http://shop.example:{endpoint.port}/"
        run(at_once, at_once, dns_servers=(names.server,), dns_cache_ttl=60)
        assert sorted(set(names.asked)) == sorted(names.asked)
        names.asked.clear()
        run(url, url, dns_servers=(names.server,), dns_cache_ttl=0)
        assert names.asked.count("A shop.example") == 2


def test_a_name_with_several_addresses_has_them_used_in_turn(names: Any) -> None:
    names.records["shop.example"] = ["127.0.0.1", "127.0.0.2"]
    with listen("127.0.0.1") as one, listen("127.0.0.2", one.port) as other:
        for listener in (one, other):
            listener.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        run(*[f"http://shop.example:{one.port}/"] * 6, dns_servers=(names.server,), dns_cache_ttl=60)
    assert len(one.requests) >= 2
    assert len(other.requests) >= 2


# --- proxies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + OK, id="more than its response"),
        pytest.param(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", id="a refusal"),
        pytest.param(b"HTTP/1.1 502 Bad Gateway\r\n\r\n", id="a fault"),
        pytest.param(b"HTTP/1.1 301 Moved\r\nlocation: /\r\n\r\n", id="a redirect"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, id="interim responses"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="something else"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_proxy_that_opens_no_tunnel_gets_no_webhook(response: bytes) -> None:
    endpoint = Endpoint([response])
    with endpoint.running() as url:
        [outcome] = run("https://shop.example/x", proxy_url=url)
    assert (outcome.failure, outcome.status_code) == (Failure.PROXY_FAILED, None)
    assert outcome.detail == "The egress proxy did not pass the request on."
    assert all(request.startswith(b"CONNECT shop.example:443 ") for request in endpoint.requests)


def test_a_proxy_of_http_1_0_opens_tunnels_too(authority: trustme.CA, ca_file: str) -> None:
    context = tls(authority, "shop.example")

    def tunnel(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.0 200 Connection established\r\nproxy-agent: x\r\n\r\n")
        with context.wrap_socket(stream, server_side=True) as inner:
            read_request(inner)  # type: ignore[arg-type]
            inner.sendall(OK)

    endpoint = Endpoint([tunnel])
    with endpoint.running() as url:
        [outcome] = run("https://shop.example/x", ca_file=ca_file, proxy_url=url)
    assert outcome.status_code == 200


def test_a_proxy_s_own_certificate_is_the_operator_s_business(authority: trustme.CA, ca_file: str) -> None:
    with proxy(context=tls(authority, "proxy.internal")) as way_out:
        for url in ("http://shop.example/", "https://shop.example/"):
            [outcome] = run(url, ca_file=ca_file, proxy_url=f"https://127.0.0.1:{way_out.port}")
            assert outcome.failure is Failure.PROXY_FAILED
            assert outcome.detail == "The egress proxy did not pass the request on."
