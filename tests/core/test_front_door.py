"""What the front door serves itself, and what it leaves to the site behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest

from core import turns
from core.front_door.app import MAX_SITE_BODY_BYTES, FrontDoor
from core.front_door.http import Message, Request, Response
from core.middleware import MAX_URL_CHARACTERS
from core.problems import Problem
from tests.busy import busy_rests

OWN, SITE = 200, 299
PATH = "/api/events"


def site(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve as the application behind the front door."""
    start_response(f"{SITE} Site", [("Content-Length", "4")])
    return [b"site"]


async def own(request: Request) -> Response:
    """Serve the front door's only route, without a look at the body."""
    return Response(OWN, b"{}")


def ask(
    *headers: tuple[bytes, bytes],
    path: str = PATH,
    query: bytes = b"",
    scheme: str = "http",
    parts: Iterable[bytes] = (),
) -> tuple[int, dict[bytes, bytes]]:
    """Send a POST through a front door; return the status and the headers of its response."""
    sent: list[Message] = []
    waiting = list(parts) or [b""]

    async def receive() -> Message:
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": scheme, "path": path,
        "raw_path": path.encode(), "query_string": query, "client": ("127.0.0.1", 1), "server": ("localhost", 80),
        "headers": [*headers] if any(name == b"host" for name, _ in headers) else [(b"host", b"localhost"), *headers],
    }  # fmt: skip
    door = FrontDoor({("POST", PATH): own}, site, threads=1)
    asyncio.run(door(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_only_its_routes_are_served_here() -> None:
    assert ask()[0] == ask(path=f"{PATH}/")[0] == OWN
    assert ask(path="/api/me")[0] == ask(path="/")[0] == SITE


@pytest.mark.parametrize(
    ("scheme", "forwarded", "status"),
    [
        ("http", None, SITE),
        ("https", None, OWN),
        ("http", b"https", OWN),
        ("https", b"http", SITE),
        ("https", b"https, http", SITE),
    ],
)
def test_what_is_not_https_is_left_to_the_site_where_https_is_required(
    settings: Any, scheme: str, forwarded: bytes | None, status: int
) -> None:
    headers = () if forwarded is None else ((b"x-forwarded-proto", forwarded),)
    assert ask(*headers, scheme=scheme)[0] == OWN
    settings.USE_HTTPS = True
    assert ask(*headers, scheme=scheme)[0] == status


def test_a_url_that_is_too_long_is_left_to_the_site() -> None:
    longest = MAX_URL_CHARACTERS - len(PATH) - 1
    assert ask(query=b"x" * longest)[0] == OWN
    assert ask(query=b"x" * (longest + 1))[0] == SITE


@pytest.mark.parametrize(
    ("host", "status"), [(b"localhost", OWN), (b"localhost:80", OWN), (b"evil.example", SITE), (b"", SITE)]
)
def test_a_host_that_is_not_allowed_is_left_to_the_site(host: bytes, status: int) -> None:
    assert ask((b"host", host))[0] == status


def test_a_request_id_is_kept_only_if_it_is_one() -> None:
    assert ask((b"x-request-id", b"a.B-1:2_3"))[1][b"x-request-id"] == b"a.B-1:2_3"
    for wrong in (b"two words", b"a\xff", b"x" * 129, b""):
        assert ask((b"x-request-id", wrong))[1][b"x-request-id"] != wrong


def test_a_connection_is_kept_only_if_its_body_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    chunked = (b"transfer-encoding", b"chunked")
    monkeypatch.setattr("core.front_door.http.DRAIN_BYTES", 10)
    monkeypatch.setattr("core.front_door.http.DRAIN_SECONDS", 3600.0)
    assert b"connection" not in ask(chunked, parts=[b"12345", b"67890"])[1]
    assert ask(chunked, parts=[b"12345", b"67890", b"x", b"y"])[1][b"connection"] == b"close"
    assert ask((b"content-length", b"11"))[1][b"connection"] == b"close"
    assert ask((b"content-length", b"1"), (b"expect", b"100-continue"))[1][b"connection"] == b"close"


def test_a_body_of_the_site_s_is_bounded() -> None:
    half = b"x" * (MAX_SITE_BODY_BYTES // 2)
    chunked = (b"transfer-encoding", b"chunked")
    assert ask(chunked, path="/", parts=[half, half])[0] == SITE
    assert ask(chunked, path="/", parts=[half, half, b"x"])[0] == 413
    assert ask(chunked, path="/", parts=[half * 2 + b"x"])[0] == 413, "all at once"
    assert ask((b"content-length", b"%d" % (MAX_SITE_BODY_BYTES + 1)), path="/")[0] == 413


def test_no_more_of_a_body_is_read_than_shows_that_it_is_too_large() -> None:
    waiting = [b"12345", b"67890", b"x", b"never read"]

    async def receive() -> Message:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": True}

    with pytest.raises(Problem) as refused:
        asyncio.run(Request({"headers": []}, receive, "id").read(10))
    assert refused.value.code == "too_large"
    assert waiting == [b"never read"]


class Everybody:
    """Remembers everybody who was served."""

    def __init__(self) -> None:
        self.served: set[Hashable] = set()

    def note(self, who: Hashable) -> None:
        self.served.add(who)

    def another_than(self, who: Hashable) -> bool:
        return bool(self.served - {who})


@pytest.mark.parametrize(("rival", "at_once"), [(b"other", 1), (b"greedy", 3)])
def test_on_busy_processors_the_site_serves_one_request_of_each_at_a_time_beside_events_of_others(
    rival: bytes, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "STUCK_SECONDS", 60.0)
    monkeypatch.setattr(turns, "MOST_WAIT_SECONDS", 60.0)
    inside: list[int] = [0, 0]
    lock = threading.Lock()
    all_are_inside, seconds = threading.Event(), 0.0  # how long a request waits for the others

    def slow_site(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with lock:
            inside[0] += 1
            inside[1] = max(inside)
            if inside[0] == 3:
                all_are_inside.set()
        all_are_inside.wait(0.05 if at_once == 1 else seconds)
        with lock:
            inside[0] -= 1
        return site(environ, start_response)

    async def run() -> None:
        nonlocal seconds
        door = FrontDoor(
            {("POST", PATH): own}, slow_site, 4, whose=lambda request: request.header(b"x-who"),
            served=Everybody(), rests=busy_rests(),
        )  # fmt: skip

        async def post(who: bytes, path: str) -> int:
            sent: list[Message] = []

            async def receive() -> Message:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Message) -> None:
                sent.append(message)

            scope = {
                "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
                "raw_path": path.encode(), "query_string": b"", "client": ("127.0.0.1", 1), "server": ("localhost", 80),
                "headers": [(b"host", b"localhost"), (b"x-who", who)],
            }  # fmt: skip
            await door(scope, receive, send)
            status: int = sent[0]["status"]
            return status

        assert await post(rival, PATH) == OWN
        await post(b"greedy", "/api/lists")  # the first two looks tell how busy the processors are
        await post(b"greedy", "/api/lists")
        inside[1], seconds = 0, 30.0
        assert await asyncio.gather(*(post(b"greedy", "/api/lists") for _ in range(3))) == [SITE] * 3

    asyncio.run(run())
    assert inside[1] == at_once
