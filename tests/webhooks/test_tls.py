"""New TLS connections resume an earlier session of the same name, and no check is lost by it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import socket
import ssl
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from devstack.waiting import wait_until
from tests.security.listeners import proxy
from tests.webhooks.helpers import raw_server, read_request
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.http.tls import (
    MAX_AGE_SECONDS,
    MAX_CERTIFICATES_BYTES,
    PATIENCE_SECONDS,
    READ_PAUSE_SECONDS,
    SessionCache,
    reading_leaks,
    resume_sessions,
)
from webhooks.destinations.outcome import Failure, Outcome

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


class Server:
    """An HTTPS receiver that closes each connection after its answer and notes which were resumed.

    A new `context` is a restart: nothing of the former one's sessions is known any more.  `instead` is sent where
    TLS is expected, and then the connection is closed.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.resumed: list[bool] = []
        self.versions: set[str | None] = set()
        self.instead: bytes | None = None
        self.port = 0

    def handle(self, plain: socket.socket) -> None:
        if self.instead is not None:
            plain.sendall(self.instead)
            return
        with self.context.wrap_socket(plain, server_side=True) as stream:
            while read_request(stream):  # type: ignore[arg-type]
                # Once the first request is here, the handshake is over on both sides.
                self.resumed.append(bool(stream.session_reused))
                self.versions.add(stream.version())
                stream.sendall(ANSWER)
                stream.unwrap()
                return

    def url(self, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}/"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("localhost", "127.0.0.1", "127.0.0.2", "127.0.0.3")


def tls(certificate: trustme.LeafCert, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if version is not None:
        context.maximum_version = version
    return context


@pytest.fixture
def server(certificate: trustme.LeafCert) -> Iterator[Server]:
    server = Server(tls(certificate))
    with raw_server(server.handle) as server.port:
        yield server


def through(ca_file: Path, *steps: Any, **egress: Any) -> list[Outcome]:
    """Do the steps with one transport: send to a URL, send to a list of them at once, or call a function."""

    async def run() -> list[Outcome]:
        transport = HttpClient(
            Egress(timeout=20, body_bytes=1024, allowed_networks=LOOPBACK, ca_file=str(ca_file), **egress)
        )
        answers = []
        try:
            for step in steps:
                if callable(step):
                    step()
                else:
                    urls = [step] if isinstance(step, str) else step
                    answers += await asyncio.gather(
                        *(transport.send(url, [("webhook-id", "x")], b"{}") for url in urls)
                    )
        finally:
            await transport.aclose()
        return answers

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("version", "name"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
def test_a_connection_after_a_closed_one_resumes_its_session(
    server: Server, certificate: trustme.LeafCert, ca_file: Path, version: ssl.TLSVersion, name: str
) -> None:
    server.context = tls(certificate, version)
    answers = through(ca_file, server.url(), server.url(), server.url())
    assert [answer.status_code for answer in answers] == [200] * 3
    assert server.resumed == [False, True, True]
    assert server.versions == {name}


def test_connections_opened_together_resume_the_same_session(server: Server, ca_file: Path) -> None:
    answers = through(ca_file, server.url(), [server.url()] * 8)
    assert [answer.status_code for answer in answers] == [200] * 9
    assert server.resumed == [False] + [True] * 8


def test_a_session_is_never_offered_to_another_name(server: Server, ca_file: Path) -> None:
    # One server, one set of ticket keys: it would take the session.
    hosts = ["localhost", "127.0.0.1", "127.0.0.1", "localhost"]
    answers = through(ca_file, *(server.url(host) for host in hosts))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert server.resumed == [False, False, True, True]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_restarted_receiver_that_knows_no_session_gets_the_webhook(
    server: Server, certificate: trustme.LeafCert, ca_file: Path, version: ssl.TLSVersion
) -> None:
    server.context = tls(certificate, version)
    restart = lambda: setattr(server, "context", tls(certificate, version))  # noqa: E731
    answers = through(ca_file, server.url(), server.url(), restart, server.url())
    assert [answer.status_code for answer in answers] == [200] * 3
    assert server.resumed == [False, True, False]


def test_another_version_of_tls_after_a_restart_does_no_harm(
    server: Server, certificate: trustme.LeafCert, ca_file: Path
) -> None:
    def become(version: ssl.TLSVersion) -> Any:
        return lambda: setattr(server, "context", tls(certificate, version))

    older, newer = become(ssl.TLSVersion.TLSv1_2), become(ssl.TLSVersion.TLSv1_3)
    answers = through(ca_file, server.url(), older, server.url(), newer, server.url())
    assert [answer.status_code for answer in answers] == [200] * 3
    assert server.resumed == [False] * 3


def test_a_certificate_that_is_wrong_after_a_restart_is_refused(
    server: Server, authority: trustme.CA, certificate: trustme.LeafCert, ca_file: Path
) -> None:
    wrong = lambda: setattr(server, "context", tls(authority.issue_cert("other.example")))  # noqa: E731
    unknown = lambda: setattr(server, "context", tls(trustme.CA().issue_cert("localhost")))  # noqa: E731
    right = lambda: setattr(server, "context", tls(certificate))  # noqa: E731
    steps = [server.url(), server.url(), wrong, server.url(), unknown, server.url(), right, server.url()]
    answers = through(ca_file, *steps)
    assert [answer.status_code for answer in answers] == [200, 200, None, None, 200]
    assert [answer.failure for answer in answers[2:4]] == [Failure.TLS_FAILED] * 2
    assert "Hostname mismatch" in answers[2].detail
    assert server.resumed == [False, True, False], "nothing was sent to the wrong ones"


def test_a_receiver_that_gives_no_sessions_gets_its_webhooks(
    server: Server, certificate: trustme.LeafCert, ca_file: Path
) -> None:
    server.context.num_tickets = 0
    assert [answer.status_code for answer in through(ca_file, server.url(), server.url())] == [200] * 2
    assert server.resumed == [False] * 2


def test_through_a_proxy_the_receiver_s_session_is_resumed(server: Server, ca_file: Path) -> None:
    with proxy() as way_out:
        answers = through(ca_file, server.url(), server.url(), proxy_url=f"http://127.0.0.1:{way_out.port}")
    assert [answer.status_code for answer in answers] == [200] * 2
    assert way_out.connections == 2
    assert server.resumed == [False, True]


def test_through_a_proxy_that_speaks_tls_both_sessions_are_resumed(
    server: Server, certificate: trustme.LeafCert, ca_file: Path
) -> None:
    with proxy(context=tls(certificate)) as way_out:
        answers = through(ca_file, server.url(), server.url(), proxy_url=f"https://127.0.0.1:{way_out.port}")
    assert [answer.status_code for answer in answers] == [200] * 2
    assert server.resumed == [False, True]
    assert way_out.resumed == [False, True]


def test_nothing_is_kept_of_a_transport_that_is_gone(server: Server, ca_file: Path) -> None:
    contexts: list[Any] = []

    async def run() -> None:
        transport = HttpClient(Egress(timeout=20, body_bytes=1024, allowed_networks=LOOPBACK, ca_file=str(ca_file)))
        contexts.append(weakref.ref(transport.tls_context))
        for _ in range(2):
            await transport.send(server.url(), [], b"{}")
        await transport.aclose()

    asyncio.run(run())
    assert server.resumed == [False, True]

    def is_gone() -> bool:
        gc.collect()  # does nothing while a thread of another test's is collecting
        return contexts[0]() is None

    wait_until(is_gone)


# --- the cache, with a clock of the test's ------------------------------------------------------------


class Client:
    """Connections over asyncio with a cache whose clock the test sets."""

    def __init__(self, ca_file: Path, port: int, **options: Any) -> None:
        self.now = 1_000.0
        self.port = port
        self.cache = SessionCache(clock=lambda: self.now, **options)
        self.context = ssl.create_default_context(cafile=str(ca_file))
        resume_sessions(self.context, self.cache)

    def connect(self, host: str = "localhost") -> bool:
        """Send one request and return whether the connection was resumed.  Raises OSError."""

        async def run() -> bool:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.context, server_hostname=host
            )
            try:
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                assert await reader.read() == ANSWER
                return bool(writer.get_extra_info("ssl_object").session_reused)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

        return asyncio.run(run())


@pytest.fixture
def client(server: Server, ca_file: Path) -> Client:
    return Client(ca_file, server.port)


def test_a_session_is_used_for_an_hour_and_the_certificate_is_then_checked_again(
    server: Server, authority: trustme.CA, client: Client
) -> None:
    assert [client.connect(), client.connect()] == [False, True]
    client.now += MAX_AGE_SECONDS / 2
    assert client.connect(), "being used doesn't lengthen its life"
    client.now += MAX_AGE_SECONDS / 2
    assert [client.connect(), client.connect()] == [False, True]
    # The same ticket keys, but the certificate is another name's now.
    authority.issue_cert("other.example").configure_cert(server.context)
    assert client.connect(), "the session stands for the check that was made"
    client.now += MAX_AGE_SECONDS
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        client.connect()


def test_the_names_remembered_are_bounded(server: Server, ca_file: Path) -> None:
    client = Client(ca_file, server.port, names=2)
    assert not any(client.connect(host) for host in ("127.0.0.1", "127.0.0.2"))
    assert client.connect("127.0.0.1"), "now the other is the one unused for the longest"
    assert not client.connect("127.0.0.3")
    assert len(client.cache) == 2
    assert client.connect("127.0.0.1")
    assert client.connect("127.0.0.3")
    assert not client.connect("127.0.0.2")


def test_a_restarted_receiver_s_new_session_is_read_after_a_pause(
    server: Server, certificate: trustme.LeafCert, client: Client
) -> None:
    assert [client.connect(), client.connect()] == [False, True]
    server.context = tls(certificate)
    assert [client.connect(), client.connect()] == [False, False]
    client.now += READ_PAUSE_SECONDS
    assert [client.connect(), client.connect()] == [False, True]


def test_a_receiver_that_knows_none_of_its_sessions_is_not_asked_each_time(
    server: Server, certificate: trustme.LeafCert, ca_file: Path
) -> None:
    client = Client(ca_file, server.port, reads=2)
    for _ in range(5):
        server.context = tls(certificate)
        assert not client.connect()
    assert [client.connect("127.0.0.1"), client.connect("127.0.0.1")] == [False, True], "one read was left"


def test_sessions_read_are_bounded_where_python_loses_memory_with_each(server: Server, ca_file: Path) -> None:
    client = Client(ca_file, server.port, reads=1)
    assert [client.connect(), client.connect()] == [False, True]
    assert [client.connect("127.0.0.1"), client.connect("127.0.0.1")] == [False, False]
    assert client.connect(), "what was read goes on"
    assert len(client.cache) == 1
    versions = {(3, 11, 0): True, (3, 11, 14): True, (3, 12, 7): True, (3, 12, 8): False}
    versions |= {(3, 13, 0): True, (3, 13, 1): False, (3, 14, 0): False}
    assert {version: reading_leaks(version) for version in versions} == versions


@pytest.mark.parametrize("waits", [True, False])
def test_a_receiver_that_hangs_up_on_sessions_is_not_offered_them_for_long(
    server: Server, client: Client, waits: bool
) -> None:
    assert [client.connect(), client.connect()] == [False, True]
    if waits:
        # Time alone does nothing.
        client.now += PATIENCE_SECONDS + 1
        assert client.connect()
    server.instead = b""
    with pytest.raises(OSError):
        client.connect()
    client.now += PATIENCE_SECONDS + 1 if waits else 0
    server.instead = None
    assert client.connect() is not waits


def test_after_a_handshake_that_failed_the_next_is_a_full_one(server: Server, client: Client) -> None:
    assert [client.connect(), client.connect()] == [False, True]
    server.instead = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with pytest.raises(ssl.SSLError):
        client.connect()
    server.instead = None
    assert not client.connect()


def test_a_session_with_more_certificates_than_anybody_needs_is_not_kept(
    server: Server, authority: trustme.CA, client: Client
) -> None:
    names = [f"{number:04}.{'x' * 50}.example" for number in range(MAX_CERTIFICATES_BYTES // 50)]
    server.context = tls(authority.issue_cert("localhost", *names))
    assert [client.connect(), client.connect()] == [False, False]


def test_a_context_that_checks_nothing_can_t_resume() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with pytest.raises(ValueError, match="host names"):
        resume_sessions(context)
