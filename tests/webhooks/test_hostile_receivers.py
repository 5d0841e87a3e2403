"""Whatever a receiver does, it costs only itself: each is a real server on a real socket, each is over in time.

A well-behaved receiver gets the same event through the same sender at the same time, and has it whatever the
hostile one does.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import gzip
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from devstack.http_receiver import Receiver
from devstack.sockets import free_port
from devstack.waiting import wait_until
from orgs.models import Organization
from tests.security.listeners import Names
from tests.webhooks.helpers import accept, queue_of, raw_server, read_request, sending, subscribe
from webhooks.models import Delivery, DeliveryAttempt, Subscription

pytestmark = pytest.mark.django_db(transaction=True)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(autouse=True)
def _patience(settings: Any) -> None:
    settings.DELIVERY_TIMEOUT = 20.0
    # The well-behaved receiver gets other chances on a machine that is too busy for the first.
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, *[600.0] * 5)
    settings.DELIVERY_RETRY_JITTER = 0.0


def first_attempt(subscription: Subscription) -> DeliveryAttempt:
    """Wait for the first attempt of the subscription's only delivery and return it."""
    return wait_until(
        lambda: DeliveryAttempt.objects.filter(delivery__subscription=subscription, number=1).first(), timeout=50
    )


def deliver(organization: Organization, receiver: Receiver, url: str, data: str = '{"n": 1}') -> DeliveryAttempt:
    """Send one event to `url` and to the well-behaved receiver; return the attempt at `url`."""
    hostile = subscribe(organization, url)
    good = subscribe(organization, receiver.url("/good"))
    with sending():
        accept(organization, 1, data)
        attempt = first_attempt(hostile)
        assert first_attempt(good).error == ""
    assert len(receiver.of("/good")) == 1
    assert Delivery.objects.get(subscription=good).status == "delivered"
    assert queue_of(hostile).in_flight == 0
    assert attempt.duration_ms < 30_000
    return attempt


def slowly(stream: socket.socket, data: bytes) -> None:
    """Send a byte a second until the peer has enough."""
    for byte in data * 1000:
        stream.sendall(bytes([byte]))
        time.sleep(1)


def forever(stream: socket.socket, chunk: bytes, sent: list[int]) -> None:
    """Send `chunk` again and again until the peer has enough."""
    while True:
        stream.sendall(chunk)
        sent[0] += len(chunk)


def reset(stream: socket.socket) -> None:
    """Close with a reset instead of an end."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def after_request(act: Callable[[socket.socket], object]) -> Callable[[socket.socket], None]:
    """Return a handler that reads the request first."""

    def handle(stream: socket.socket) -> None:
        if read_request(stream):
            act(stream)

    return handle


# --- no answer, or none that ends -------------------------------------------------------------------


@pytest.mark.parametrize(
    "handle",
    [
        pytest.param(lambda stream: stream.recv(1) and threading.Event().wait(30), id="reads nothing"),
        pytest.param(after_request(lambda stream: stream.recv(1)), id="reads all and says nothing"),
        pytest.param(after_request(lambda stream: slowly(stream, b"HTTP/1.1 200 OK\r\n")), id="a byte a second"),
    ],
)
def test_who_never_finishes_a_head_is_a_timeout_after_the_total_time(
    organization: Organization, receiver: Receiver, settings: Any, handle: Callable[[socket.socket], None]
) -> None:
    settings.DELIVERY_TIMEOUT = 1.5
    with raw_server(handle) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("timeout", None)
    assert attempt.duration_ms >= 1400
    assert Delivery.objects.filter(status="pending", attempt_count=1, attempts_used=1).count() == 1


def test_a_socket_that_nobody_accepts_from_is_a_timeout(
    organization: Organization, receiver: Receiver, settings: Any
) -> None:
    settings.DELIVERY_TIMEOUT = 1.5
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{server.getsockname()[1]}/")
    assert attempt.error == "timeout"


def test_a_2xx_counts_although_its_body_comes_a_byte_a_second(
    organization: Organization, receiver: Receiver, settings: Any
) -> None:
    settings.DELIVERY_TIMEOUT = 2.0

    def act(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        slowly(stream, b"x")

    with raw_server(after_request(act)) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("", 200)
    assert attempt.error_detail == "The response's body did not end in time."
    assert set(attempt.response_body) <= {"x"}


def resident_bytes() -> int:
    """Return how much memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("head", [b"content-length: 99999999999", b"transfer-encoding: chunked", b"connection: close"])
def test_an_endless_body_is_cut_off_and_memory_stays_flat(
    organization: Organization, receiver: Receiver, settings: Any, head: bytes
) -> None:
    settings.RESPONSE_BODY_BYTES = 100
    chunk = b"x" * 65536
    if b"chunked" in head:
        chunk = b"10000\r\n" + chunk + b"\r\n"
    sent = [0]

    def act(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        forever(stream, chunk, sent)

    with raw_server(after_request(act)) as port:
        hostile = [subscribe(organization, f"http://127.0.0.1:{port}/{n}") for n in range(20)]
        before = resident_bytes()
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
        with sending():  # what the end of the first one gave back
            for subscription in hostile:
                first_attempt(subscription)
        grown = resident_bytes() - before
    assert (attempt.error, attempt.status_code) == ("", 200)
    assert attempt.response_body == "x" * 100
    assert grown < 100 * 2**20
    # Cut off, not drained: what the kernel's buffers hold, and no more.
    assert sent[0] < 21 * 16 * 2**20


def test_a_gzip_bomb_is_not_unpacked(organization: Organization, receiver: Receiver) -> None:
    bomb = gzip.compress(bytes(200 * 2**20), 1)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n"
    before = resident_bytes()
    with raw_server(after_request(lambda stream: stream.sendall(head % len(bomb) + bomb))) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("", 200)
    assert attempt.response_body.startswith("\x1f")  # as it came, packed
    assert len(attempt.response_body) <= 1024
    assert resident_bytes() - before < 100 * 2**20


# --- answers that lie or break off ------------------------------------------------------------------


def test_a_content_length_that_is_too_long_is_still_the_answer_that_its_status_says(
    organization: Organization, receiver: Receiver
) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nshort"
    with raw_server(after_request(lambda stream: stream.sendall(answer))) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code, attempt.response_body) == ("", 200, "short")
    assert attempt.error_detail.startswith("The response's body broke off")


def test_bytes_after_a_content_length_that_is_too_short_never_answer_another_request(
    organization: Organization, receiver: Receiver
) -> None:
    """What follows the body looks like a 200; the next webhook must not take it for its own."""
    served: list[bytes] = []

    def handle(stream: socket.socket) -> None:
        while request := read_request(stream):
            served.append(request)
            stream.sendall(b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\nno" + OK)

    with raw_server(handle) as port:
        subscription = subscribe(organization, f"http://127.0.0.1:{port}/")
        with sending():
            for number in range(1, 4):
                accept(organization)
                wait_until(lambda n=number: DeliveryAttempt.objects.count() >= n)  # type: ignore[misc]
    assert len(served) == 3
    assert set(DeliveryAttempt.objects.values_list("status_code", flat=True)) == {500}
    assert not Delivery.objects.filter(subscription=subscription, status="delivered").exists()


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"0x10", b"5, 6", b"99999999999999999999999999"])
def test_a_content_length_that_is_no_length_harms_nobody(
    organization: Organization, receiver: Receiver, length: bytes
) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: " + length + b"\r\n\r\nshort"
    with raw_server(after_request(lambda stream: stream.sendall(answer))) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert attempt.error in {"", "invalid_response"}


@pytest.mark.parametrize(
    "noise",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\x00\x01\x02\xff" * 100,
        b"HTTP/9.9 twohundred OK\r\n\r\n",
        b"HTTP/1.1 99999 ?\r\n\r\n",
    ],
)
def test_what_is_not_http_is_an_invalid_response(organization: Organization, receiver: Receiver, noise: bytes) -> None:
    with raw_server(after_request(lambda stream: stream.sendall(noise))) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("invalid_response", None)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda stream: None, id="without a word"),
        pytest.param(reset, id="with a reset"),
        pytest.param(lambda stream: stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-le"), id="in the middle of the head"),
    ],
)
def test_a_connection_that_closes_before_the_head_is_complete_is_lost(
    organization: Organization, receiver: Receiver, act: Callable[[socket.socket], None]
) -> None:
    with raw_server(after_request(act)) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("connection_lost", None)


def test_a_connection_that_closes_in_the_middle_of_the_request_is_lost(
    organization: Organization, receiver: Receiver
) -> None:
    def handle(stream: socket.socket) -> None:
        stream.recv(1000)
        reset(stream)

    with raw_server(handle) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/", '"' + "x" * 200_000 + '"')
    assert attempt.error == "connection_lost"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(b"x-long: " + b"a" * 100_000 + b"\r\n", id="one of 100 KB"),
        pytest.param(b"".join(b"x-%d: %s\r\n" % (n, b"a" * 90) for n in range(1000)), id="a thousand"),
    ],
)
def test_a_hundred_kilobytes_of_headers_are_an_invalid_response(
    organization: Organization, receiver: Receiver, headers: bytes
) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + headers + b"content-length: 2\r\n\r\nok"
    with raw_server(after_request(lambda stream: stream.sendall(answer))) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("invalid_response", None)


def test_200_and_then_a_reset_is_delivered_and_says_so(organization: Organization, receiver: Receiver) -> None:
    def act(stream: socket.socket) -> None:
        stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of")
        time.sleep(0.2)
        reset(stream)

    with raw_server(after_request(act)) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code, attempt.response_body) == ("", 200, "half of")
    assert attempt.error_detail.startswith("The response's body broke off")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_is_never_followed(
    organization: Organization, receiver: Receiver, status: int
) -> None:
    elsewhere = receiver.url("/elsewhere").encode()
    answer = b"HTTP/1.1 %d Moved\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % (status, elsewhere)
    with raw_server(after_request(lambda stream: stream.sendall(answer))) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("redirect", status)
    assert receiver.of("/elsewhere") == []


# --- nobody there, or the wrong one -----------------------------------------------------------------


def test_a_host_that_does_not_exist_is_a_dns_failure(
    organization: Organization, receiver: Receiver, settings: Any
) -> None:
    with Names().running() as server:
        settings.WEBHOOK_DNS_SERVERS = (server,)
        attempt = deliver(organization, receiver, "http://nobody.example.org/")
    assert (attempt.error, attempt.error_detail) == ("dns_failed", "The host name has no address.")


def test_a_refused_connection_says_so(organization: Organization, receiver: Receiver) -> None:
    attempt = deliver(organization, receiver, f"http://127.0.0.1:{free_port()}/")
    assert (attempt.error, attempt.status_code) == ("connection_refused", None)


@contextlib.contextmanager
def https(certificate: trustme.LeafCert) -> Iterator[int]:
    """Run an HTTPS server with this certificate; yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)

    def handle(stream: socket.socket) -> None:
        while read_request(stream):
            stream.sendall(OK)

    with raw_server(handle, context) as port:
        yield port


@pytest.fixture
def authority(settings: Any, tmp_path: Path) -> trustme.CA:
    """Return a certificate authority that the sender trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings.WEBHOOK_CA_FILE = str(tmp_path / "ca.pem")
    return authority


def test_a_certificate_of_a_trusted_authority_is_good(
    organization: Organization, receiver: Receiver, authority: trustme.CA
) -> None:
    with https(authority.issue_cert("127.0.0.1")) as port:
        assert deliver(organization, receiver, f"https://127.0.0.1:{port}/").error == ""


def _bad_certificates(authority: trustme.CA) -> dict[str, trustme.LeafCert]:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    return {
        "self-signed": trustme.CA().issue_cert("127.0.0.1"),
        "expired": authority.issue_cert(
            "127.0.0.1", not_before=yesterday - datetime.timedelta(days=9), not_after=yesterday
        ),
        "of another host": authority.issue_cert("somebody.example.org"),
    }


@pytest.mark.parametrize("fault", ["self-signed", "expired", "of another host"])
def test_a_certificate_that_is_wrong_is_a_tls_failure_and_nothing_is_sent(
    organization: Organization, receiver: Receiver, authority: trustme.CA, fault: str
) -> None:
    with https(_bad_certificates(authority)[fault]) as port:
        attempt = deliver(organization, receiver, f"https://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("tls_failed", None)


def test_plain_http_where_tls_is_expected_is_a_tls_failure(organization: Organization, receiver: Receiver) -> None:
    with raw_server(lambda stream: stream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert deliver(organization, receiver, f"https://127.0.0.1:{port}/").error == "tls_failed"


# --- answers that ask for something -----------------------------------------------------------------


def test_410_disables_the_subscription_and_loses_nothing(organization: Organization, receiver: Receiver) -> None:
    gone = b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"
    with raw_server(after_request(lambda stream: stream.sendall(gone))) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("http_status", 410)
    subscription = Subscription.objects.get(is_active=False)
    assert (subscription.disabled_cause, subscription.disabled_reason) == ("gone", "The endpoint returned 410 Gone.")
    assert Delivery.objects.get(subscription=subscription).status == "held"


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        pytest.param("900", 895, 900, id="seconds"),
        pytest.param("date", 880, 900, id="an HTTP date"),
        pytest.param("99999999999999999999", 3595, 3600, id="absurd"),
        pytest.param("-5", 0, 600, id="negative"),
        pytest.param("soon", 0, 600, id="a word"),
        pytest.param("Thu, 01 Jan 1970 00:00:00 GMT", 0, 600, id="a date in the past"),
        pytest.param("Thu, 99 Foo 99999 99:99:99 GMT", 0, 600, id="a date that is none"),
    ],
)
def test_retry_after_is_honored_within_bounds_for_the_whole_subscription(
    organization: Organization, receiver: Receiver, header: str, least: int, most: int
) -> None:
    if header == "date":
        header = email.utils.format_datetime(
            datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=900), usegmt=True
        )
    answer = b"HTTP/1.1 429 Slow down\r\nretry-after: " + header.encode() + b"\r\ncontent-length: 0\r\n\r\n"
    with raw_server(after_request(lambda stream: stream.sendall(answer))) as port:
        attempt = deliver(organization, receiver, f"http://127.0.0.1:{port}/")
    assert (attempt.error, attempt.status_code) == ("http_status", 429)
    delivery = Delivery.objects.get(id=attempt.delivery_id)
    queue = queue_of(delivery.subscription)
    assert delivery.next_attempt_at is not None
    waits = (delivery.next_attempt_at - attempt.started_at).total_seconds()
    # The schedule's own delay is the least; the two times are of two clocks, some milliseconds apart.
    assert waits >= max(600, least) - 1
    if least:
        assert queue.paused_until is not None
        paused = (queue.paused_until - attempt.started_at).total_seconds()
        assert least <= paused <= most + 30
    else:
        assert queue.paused_until is None
