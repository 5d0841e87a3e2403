"""What each attempt keeps of the request and the response, how it is shown, and the command that repeats it."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import socket
import subprocess
from typing import Any

import pytest
from django.test import override_settings
from structlog.testing import capture_logs

from core.encryption import DecryptionError, Sealer, unseal
from devstack.http_receiver import Received, Receiver, Response
from devstack.waiting import wait_until
from events.ingest import ingest
from events.models import Event
from events.origin import origin_of
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import fan_out, raw_server, read_request, sending, subscribe
from webhooks.attempts import describe_exchange, exchange_of
from webhooks.destinations.exchange import (
    MAX_HEAD_BYTES,
    Exchange,
    open_exchange,
    response_headers,
    seal_exchange,
    status_line,
)
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.curl import body_command, curl_command, quote
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.http.query_secrets import mask_query, secret_parameters
from webhooks.destinations.outcome import Failure, Outcome
from webhooks.models import DeliveryAttempt

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


def send(*urls: str) -> list[Outcome]:
    """Send to the URLs in turn, with one client."""

    async def work() -> list[Outcome]:
        client = HttpClient(Egress(timeout=10.0, body_bytes=64, allowed_networks=LOOPBACK))
        try:
            return [await client.send(url, [("webhook-id", "x")], b"{}") for url in urls]
        finally:
            await client.aclose()

    return asyncio.run(work())


def exchange(outcome: Outcome) -> Exchange:
    assert outcome.exchange is not None
    return outcome.exchange


def deliver(organization: Organization, receiver: Receiver, data: str = "{}", **origin: Any) -> DeliveryAttempt:
    """Accept an event, deliver it, and return the attempt."""
    given = origin_of("request-1", origin.get("traceparent"), origin.get("tracestate"))
    event_id = ingest(organization.id, NewEvent("order.created", data, None), given).event_id
    fan_out()
    with sending():
        wait_until(lambda: DeliveryAttempt.objects.filter(delivery__event_id=event_id).exists(), timeout=30)
    return DeliveryAttempt.objects.get(delivery__event_id=event_id)


# --- the client reports ----------------------------------------------------------------------------


def test_the_first_request_connects_and_the_second_reuses() -> None:
    with Receiver() as receiver:
        first, second = map(exchange, send(receiver.url("/a"), receiver.url("/b")))
        port = receiver.url().rsplit(":", 1)[1].strip("/")
    assert first.remote_address == second.remote_address == f"127.0.0.1:{port}"
    assert (first.is_reused, second.is_reused) == (False, True)
    assert first.connect_us is not None
    assert first.connect_us > 0
    assert (second.dns_us, second.connect_us, second.tls_us) == (None, None, None)
    assert first.first_byte_us is not None
    assert first.first_byte_us > 0
    assert first.response_head.startswith(b"HTTP/1.1 200")


def test_a_name_has_a_time_for_dns() -> None:
    with Receiver() as receiver:
        [found] = map(exchange, send(receiver.url("/").replace("127.0.0.1", "localhost")))
    assert found.dns_us is not None


def test_a_refused_connection_keeps_how_far_it_came() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        [outcome] = send(f"http://127.0.0.1:{bound.getsockname()[1]}/")
    assert outcome.failure is Failure.CONNECTION_REFUSED
    assert exchange(outcome).connect_us is not None
    assert (exchange(outcome).remote_address, exchange(outcome).response_head) == ("", b"")


def test_a_request_that_was_sent_again_says_so() -> None:
    seen: list[int] = []

    def handle(stream: socket.socket) -> None:
        seen.append(1)
        read_request(stream)
        stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-connection: %d\r\n\r\n" % len(seen))
        if len(seen) == 1:
            read_request(stream)

    with raw_server(handle) as port:
        first, second = map(exchange, send(f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{port}/"))
    assert (first.is_resent, second.is_resent, second.is_reused) == (False, True, False)
    assert b"x-connection: 2" in second.response_head


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nx-bytes: \xff\xfe\x80\r\nx-esc: \x1b[31m\r\nx-folded: a\r\n b\r\ncontent-length: 0",
        b"HTTP/1.1 200 OK\r\n" + b"x-long: " + b"a" * 20_000 + b"\r\ncontent-length: 0",
        b"HTTP/1.1 503 \xe2\x80\xae\r\ncontent-length: 0",
        b"SSH-2.0-OpenSSH_9.6",
        b"HTTP/1.1 200 OK\r\nbroken header\r\ncontent-length: 0",
    ],
)
def test_a_head_of_any_bytes_is_kept_within_bounds_and_comes_back(head: bytes) -> None:
    def handle(stream: socket.socket) -> None:
        read_request(stream)
        stream.sendall(head + b"\r\n\r\n")

    with raw_server(handle) as port:
        [found] = map(exchange, send(f"http://127.0.0.1:{port}/"))
    assert found.response_head
    assert found.response_head.rstrip(b"\r\n") == head[:MAX_HEAD_BYTES].rstrip(b"\r\n")
    assert found.is_head_cut is (len(head) > MAX_HEAD_BYTES)
    opened = open_exchange(seal_exchange(found, Sealer()))
    assert opened == found
    assert status_line(opened)
    describe_exchange(opened, "{}")


def test_folded_and_repeated_headers_are_read_back() -> None:
    found = Exchange("http://a/", [], response_head=b"HTTP/1.1 200 OK\r\nA: 1\r\n 2\r\na: \xc3\xa9\r\nb:\xff\r\n?")
    assert response_headers(found) == [("A", "1 2"), ("a", "é"), ("b", "ÿ"), ("", "?")]


def test_what_was_stored_stays_readable() -> None:
    """If this fails, the dictionary has changed: every exchange that is kept would be lost."""
    stored = bytes.fromhex(
        "019bbf1bd50da91540a539a97ac9f9b9fa899308b9088b81826b0d2d8df40cf48cf40c4159f4d0a143070e1c38cb72e98802"
        "461ca025d0430b160000"
    )
    found = open_exchange(Sealer().seal(stored))
    assert found == Exchange(
        "https://hooks.example.com/a",
        [("content-type", "application/json"), ("webhook-signature", None)],
        17,
        "192.0.2.1:443",
        first_byte_us=1234,
        response_head=b"HTTP/1.1 200 OK\r\nServer: nginx\r\n",
    )
    with pytest.raises(DecryptionError, match="stored in a way"):
        open_exchange(Sealer().seal(b"\x63" + stored[1:]))


def test_an_exchange_of_any_size_is_compressed() -> None:
    short = Exchange("http://a/", [("content-type", "application/json"), ("user-agent", "TriggersAPI/1.0")])
    assert len(seal_exchange(short, Sealer())) < 90
    headers: list[tuple[str, str | None]] = [(f"x-{number}", "value " * 100) for number in range(100)]
    long = Exchange("http://a/", headers, response_head=b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1_000)
    sealed = seal_exchange(long, Sealer())
    assert open_exchange(sealed) == long
    assert len(sealed) < 3_000


# --- sealing ---------------------------------------------------------------------------------------


def test_a_derived_key_seals_a_bounded_number_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.encryption._MESSAGES_PER_KEY", 2)
    sealer = Sealer()
    first, second, third = (sealer.seal(b"secret")[:16] for _ in range(3))  # begins with the key's salt
    assert first == second != third


def test_a_sealed_message_needs_one_of_the_keys() -> None:
    sealer = Sealer()
    sealed = sealer.seal(b"secret")
    assert b"secret" not in sealed
    assert sealer.seal(b"secret") != sealed
    assert unseal(sealed) == b"secret"
    for broken in (sealed[:-1], b"", sealed[:20], bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(DecryptionError):
            unseal(broken)


def test_a_replaced_key_still_opens_and_a_dropped_one_does_not(settings: Any) -> None:
    from cryptography.fernet import Fernet

    sealed = Sealer().seal(b"secret")
    old = list(settings.SECRETS_ENCRYPTION_KEYS)
    new = Fernet.generate_key().decode()
    with override_settings(SECRETS_ENCRYPTION_KEYS=[new, *old]):
        assert unseal(sealed) == b"secret"
        of_the_newest = Sealer().seal(b"secret")
    with override_settings(SECRETS_ENCRYPTION_KEYS=[new]):
        assert unseal(of_the_newest) == b"secret"
        with pytest.raises(DecryptionError):
            unseal(sealed)


# --- what is stored, shown and logged --------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_an_attempt_keeps_what_the_receiver_got(organization: Organization, api: Any, other_api: Any) -> None:
    def respond(request: Received, number: int) -> Response:
        return Response(200, {"Set-Cookie": "s=1", "X-Hostile": "<script>\xff"}, b"thanks")

    with Receiver(respond) as receiver:
        subscribe(organization, receiver.url("/hook?a=1&api%5Fkey=in-the-query"), headers={"X-Token": "very-secret"})
        with capture_logs() as logged:
            attempt = deliver(organization, receiver, '{"a":  1}', traceparent=TRACEPARENT, tracestate="a=1,b=2")
        [request] = receiver.wait_for(1)
    assert attempt.sealed_exchange is not None
    assert b"very-secret" not in bytes(attempt.sealed_exchange)
    path = f"/api/deliveries/{attempt.delivery_id}/attempts/1"
    document = api.get(path).json()
    assert "very-secret" not in str(document)
    assert document["exchange"]["request"]["url"] == receiver.url("/hook?a=1&api%5Fkey=***")
    assert request.path == "/hook?a=1&api%5Fkey=in-the-query"
    kept = exchange_of(attempt)
    assert kept is not None
    assert curl_command(kept).endswith("/hook?a=1&api%5Fkey=<api%5Fkey>'")
    assert request.headers["webhook-signature"] not in str(document)
    shown = {header["name"].lower(): header["value"] for header in document["exchange"]["request"]["headers"]}
    assert shown.pop("x-token") == shown.pop("webhook-signature") == "***"
    secret = ("x-token", "webhook-signature")
    assert shown == {name: value for name, value in request.headers.items() if name not in secret}
    assert shown["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert shown["traceparent"] != TRACEPARENT
    assert shown["tracestate"] == "a=1,b=2"
    response = document["exchange"]["response"]
    assert {"name": "Set-Cookie", "value": "s=1"} in response["headers"]
    assert response["status_line"].startswith("HTTP/1.1 200")
    event = Event.objects.get()
    assert document["exchange"]["request"]["body"].encode() == request.body
    assert document["exchange"]["request"]["body_bytes"] == len(request.body)
    shown_event = api.get(f"/api/events/{event.id}").json()
    assert (shown_event["request_id"], shown_event["traceparent"]) == ("request-1", TRACEPARENT)
    assert other_api.get(path).status_code == 404
    for number in (0, 2, 2**31, 10**30):
        assert api.get(f"/api/deliveries/{attempt.delivery_id}/attempts/{number}").status_code == 404
    [line] = [line for line in logged if line["event"] == "delivery_attempt"]
    assert line["outcome"] == "delivered"
    assert line["attempt"] == 1
    assert line["status"] == 200
    assert (line["request_id"], line["trace_id"]) == ("request-1", TRACE_ID)
    assert line["remote_address"]
    assert line["first_byte_ms"] > 0
    assert line["duration_ms"] > 0


@pytest.mark.django_db(transaction=True)
def test_nothing_is_kept_for_an_organization_that_wants_none(organization: Organization, api: Any) -> None:
    Organization.objects.update(keep_exchanges=False)
    with Receiver() as receiver:
        subscribe(organization, receiver.url("/"))
        attempt = deliver(organization, receiver)
        assert receiver.wait_for(1)[0].headers.get("traceparent") is None
    assert attempt.sealed_exchange is None
    assert exchange_of(attempt) is None
    assert api.get(f"/api/deliveries/{attempt.delivery_id}/attempts/1").json()["exchange"] is None


# --- curl ------------------------------------------------------------------------------------------

HOSTILE = [
    "plain",
    "it's $HOME `id` $(id) \\ \" !! & ; | > < * ? [a-z] {a,b} ~ #",
    "new\nline\r\nand\ttab \x1b[31m \x7f",
    "right-to-left \u202e and \u2066 and \u200b, é, 日本, \U0001f600",
    "\\'\\\\'' $'x' \\n %s %d\\c",
    "-n --option @file",
    "EOF\nEOF",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_quoted_text_is_one_word_of_the_shell_and_printable(text: str) -> None:
    word = quote(text)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode() == text


def test_secrets_in_a_query_are_told_by_their_names_and_the_rest_stays_byte_for_byte() -> None:
    url = "https://a/?/b?Access-Token=1;apiKey=2&X-Amz-Signature=a=b&author=c&%74oken=%20&key=&q='%2f+?sig=x&&code"
    masked = "https://a/?/b?Access-Token=*;apiKey=*&X-Amz-Signature=*&author=c&%74oken=*&key=&q='%2f+?sig=x&&code"
    assert mask_query(url, lambda name: "*") == masked
    assert mask_query("https://a/token=1", lambda name: "*") == "https://a/token=1"
    assert secret_parameters(url) == ["/b?Access-Token", "apiKey", "X-Amz-Signature", "%74oken"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("text", [*HOSTILE, "x" * 300_000])
def test_the_command_sends_what_was_sent(text: str) -> None:
    body = f'{{"data":"{text}"}}'
    with Receiver() as receiver:
        url = receiver.url("/a/../b;$(id)?q='x'&{a,b}=[1-3]&p=%0A`id`")
        found = Exchange(
            url,
            [
                ("content-type", "application/json"),
                ("user-agent", "x"),
                ("x-quote", "it's $(id) \\ \""),
                ("x-empty", ""),
                ("x-secret", None),
            ],
        )
        command = f"{body_command(body)} | {curl_command(found)} --silent --output /dev/null"
        subprocess.run(["bash"], input=command.encode(), check=True, timeout=60)
        [request] = receiver.wait_for(1)
    assert request.body.decode() == body
    assert url.endswith(request.path)
    sent = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
    assert sent == {
        "content-type": "application/json", "user-agent": "x", "x-quote": "it's $(id) \\ \"", "x-empty": "",
        "x-secret": "<x-secret>",
    }  # fmt: skip
