"""One request on the wire: connections are kept, bodies bounded, faults classed, and never more told than is fit."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest

from devstack.http_receiver import Receiver, Response
from tests.webhooks.helpers import raw_server, read_request
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.http.errors import ConnectFailed, ConnectionLost, DnsFailed, InvalidResponse
from webhooks.destinations.http.failures import explain
from webhooks.destinations.http.resolver import SystemResolver
from webhooks.destinations.outcome import Failure, Outcome

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


def send_all(urls: list[str], body: bytes = b"{}", **egress: Any) -> list[Outcome]:
    """Send to the URLs, one after the other, through one transport."""

    async def run() -> list[Outcome]:
        transport = HttpClient(Egress(**{"timeout": 20.0, "body_bytes": 1024, "allowed_networks": LOOPBACK, **egress}))
        try:
            return [await transport.send(url, [("webhook-id", "x")], body) for url in urls]
        finally:
            await transport.aclose()

    return asyncio.run(run())


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    def handle(stream: socket.socket) -> None:
        while read_request(stream):
            stream.sendall(answer)

    return handle


def test_connections_are_kept_while_bodies_end_in_time(receiver: Receiver) -> None:
    answers = send_all([receiver.url("/a"), receiver.url("/b"), receiver.url("/c")])
    assert [answer.failure for answer in answers] == [None] * 3
    assert receiver.connections == 1


def test_a_connection_with_an_unread_rest_of_an_answer_is_not_used_again(receiver: Receiver) -> None:
    receiver.behavior = lambda request, number: Response(body=b"x" * 20_000_000)
    answers = send_all([receiver.url()] * 3, body_bytes=10)
    assert [answer.body for answer in answers] == ["x" * 10] * 3
    assert receiver.connections == 3


@pytest.mark.parametrize(("kept", "text"), [(0, ""), (1, "\ufffd"), (2, "é"), (3, "é\ufffd"), (100, "éé")])
def test_a_body_is_cut_by_bytes_and_half_a_character_is_replaced(receiver: Receiver, kept: int, text: str) -> None:
    receiver.behavior = lambda request, number: Response(body="éé".encode())
    assert send_all([receiver.url()], body_bytes=kept)[0].body == text


def test_a_body_of_any_bytes_becomes_text_that_can_be_stored(receiver: Receiver) -> None:
    receiver.behavior = lambda request, number: Response(body=bytes(range(256)))
    body = send_all([receiver.url()])[0].body
    assert "\x00" not in body
    body.encode()


def test_an_answer_without_a_body_and_one_before_the_answer_are_fine() -> None:
    with raw_server(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as port:
        outcome = send_all([f"http://127.0.0.1:{port}/"])[0]
        assert dataclasses.replace(outcome, exchange=None) == Outcome(204, None, "", "")
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    with raw_server(answering(early)) as port:
        assert send_all([f"http://127.0.0.1:{port}/"])[0].status_code == 200


def test_cookies_are_neither_kept_nor_sent(receiver: Receiver) -> None:
    receiver.behavior = lambda request, number: Response(headers={"set-cookie": "a=b; Path=/"})
    send_all([receiver.url(), receiver.url()])
    assert all("cookie" not in request.headers for request in receiver.requests)


def test_a_policy_that_changed_since_the_url_was_stored_counts(receiver: Receiver) -> None:
    (answer,) = send_all([receiver.url()], allowed_networks=())
    assert answer.failure is Failure.ADDRESS_NOT_ALLOWED
    (answer,) = send_all([receiver.url()], allowed_ports=frozenset({1}))
    assert answer.failure is Failure.ADDRESS_NOT_ALLOWED
    assert receiver.count == 0


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ConnectionRefusedError(), Failure.CONNECTION_REFUSED),
        (ConnectionResetError(), Failure.CONNECTION_LOST),
        (BrokenPipeError(), Failure.CONNECTION_LOST),
        (ConnectionLost(), Failure.CONNECTION_LOST),
        (ConnectFailed(), Failure.CONNECTION_FAILED),
        (socket.gaierror(-2, "Name or service not known"), Failure.DNS_FAILED),
        (InvalidResponse("it is none"), Failure.INVALID_RESPONSE),
        (RuntimeError("secret"), Failure.INTERNAL_ERROR),
        (ExceptionGroup("several", [ConnectionRefusedError()]), Failure.CONNECTION_REFUSED),
    ],
)
def test_every_fault_has_its_class_and_a_fault_of_ours_tells_nothing(error: Exception, failure: Failure) -> None:
    answer = explain(error)
    assert answer.failure is failure
    assert "secret" not in answer.detail
    outer = OSError("outer")
    outer.__cause__ = error
    assert explain(outer).failure is failure


def test_a_chain_of_causes_that_bites_its_tail_ends() -> None:
    one, other = RuntimeError("a"), RuntimeError("b")
    one.__cause__, other.__cause__ = other, one
    assert explain(one).failure is Failure.INTERNAL_ERROR


def test_the_system_s_resolver_finds_names_and_says_when_there_is_none() -> None:
    async def run() -> None:
        resolver = SystemResolver(4)
        found = await resolver.resolve("localhost")
        assert {str(address) for address in found} <= {"127.0.0.1", "::1"}
        assert found
        with pytest.raises(DnsFailed):
            await resolver.resolve("name.invalid")
        await resolver.close()

    asyncio.run(run())
