"""Client certificates (mTLS): presented to those who ask, changed without a restart, and never shared."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import socket
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from core.encryption import encrypt
from tests.security.listeners import proxy
from tests.webhooks.helpers import raw_server, read_request
from webhooks.destinations.http import client as client_module
from webhooks.destinations.http.client import HttpClient, Identity
from webhooks.destinations.http.client_certificates import (
    CertificateError,
    ClientCertificate,
    check_client_certificate,
    open_client_certificate,
    seal_client_certificate,
)
from webhooks.destinations.http.destination import HttpDestination
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.http.endpoint import open_endpoint
from webhooks.destinations.outcome import Failure, Outcome
from webhooks.outgoing import SingleOutgoing

NOW = datetime.datetime.now(datetime.UTC)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
ALLOWED = (ipaddress.ip_network("127.0.0.0/8"),)
ONE, OTHER = str(uuid.uuid4()), str(uuid.uuid4())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def parts(issued: trustme.LeafCert) -> tuple[str, str]:
    """Return the chain and the key of a certificate in PEM."""
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return chain.decode(), issued.private_key_pem.bytes().decode()


def issue(authority: trustme.CA, name: str, **options: Any) -> ClientCertificate:
    return check_client_certificate(*parts(authority.issue_cert(f"{name}.example", common_name=name, **options)), NOW)


class MutualServer:
    """An HTTPS receiver that asks for a client certificate and notes each request's: name and connection."""

    def __init__(self, authority: trustme.CA, requires: bool = True) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self.context)
        authority.configure_trust(self.context)
        self.context.verify_mode = ssl.CERT_REQUIRED if requires else ssl.CERT_OPTIONAL
        self.seen: list[tuple[str | None, int]] = []
        self.resumed: list[bool] = []
        self.connections = 0
        self.resets = False
        self.port = 0

    def handle(self, plain: socket.socket) -> None:
        with self.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False) as stream:
            try:
                stream.do_handshake()
            except ssl.SSLError:
                if not self.resets:
                    socket.socket.recv(stream, 65536)  # the request that came with the end of the handshake
                return
            self.connections += 1
            number = self.connections
            while read_request(stream):
                shown: Any = stream.getpeercert() or {}
                names = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
                self.seen.append((names[0] if names else None, number))
                self.resumed.append(bool(stream.session_reused))
                stream.sendall(ANSWER)

    @property
    def names(self) -> list[str | None]:
        return [name for name, _ in self.seen]

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/"


class ClosingServer(MutualServer):
    """One that closes each connection after its answer, so that the next one may resume its session."""

    def __init__(self, authority: trustme.CA) -> None:
        super().__init__(authority)
        self.context.maximum_version = ssl.TLSVersion.TLSv1_2

    def handle(self, plain: socket.socket) -> None:
        with self.context.wrap_socket(plain, server_side=True) as stream:
            read_request(stream)
            self.resumed.append(bool(stream.session_reused))
            stream.sendall(ANSWER.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            stream.unwrap()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[MutualServer]:
    server = MutualServer(authority)
    with raw_server(server.handle) as server.port:
        yield server


def through(ca_file: Path, url: str, *identities: Identity | None, **egress: Any) -> list[Outcome]:
    """Send to the URL for each identity in turn, with one client."""

    async def run() -> list[Outcome]:
        client = HttpClient(
            Egress(timeout=20, body_bytes=1024, allowed_networks=ALLOWED, ca_file=str(ca_file), **egress)
        )
        try:
            return [await client.send(url, [("webhook-id", "x")], b"{}", identity=identity) for identity in identities]
        finally:
            await client.aclose()

    return asyncio.run(run())


def attempt(url: str, sealed: str) -> Outcome:
    """Send an event as a worker does, with the certificate of a subscription."""
    endpoint = open_endpoint(url, "", "", sealed_certificate=sealed)
    outgoing = SingleOutgoing(uuid.uuid4(), "a.b", NOW, "{}", endpoint, uuid.uuid4())

    async def run() -> Outcome:
        destination = HttpDestination()
        try:
            return await destination.send(outgoing, NOW.timestamp())
        finally:
            await destination.aclose()

    return asyncio.run(run())


def test_it_is_presented_and_one_identity_shares_no_connection_with_another(
    server: MutualServer, authority: trustme.CA, ca_file: Path
) -> None:
    mine, yours = issue(authority, "mine"), issue(authority, "yours")
    outcomes = through(
        ca_file,
        server.url,
        Identity(ONE, mine),
        Identity(ONE, mine),
        Identity(OTHER, yours),
        Identity(ONE, mine),
        Identity(OTHER, mine),
    )
    assert [outcome.status_code for outcome in outcomes] == [200] * 5
    # The same certificate of another organization isn't the same identity.
    assert server.seen == [("mine", 1), ("mine", 1), ("yours", 2), ("mine", 1), ("mine", 3)]
    assert server.resumed == [False] * 5


def test_without_one_an_endpoint_that_asks_for_it_gets_nothing_and_no_kept_connection_is_lent(
    server: MutualServer, authority: trustme.CA, ca_file: Path
) -> None:
    mine = issue(authority, "mine")
    answered, refused = through(ca_file, server.url, Identity(ONE, mine), None)
    assert answered.status_code == 200
    assert (refused.status_code, refused.failure) == (None, Failure.TLS_FAILED)
    assert "certificate required" in refused.detail
    assert server.names == ["mine"]


@pytest.mark.parametrize("resets", [False, True])
def test_a_certificate_of_another_authority_is_a_tls_failure_or_at_least_suspected(
    server: MutualServer, ca_file: Path, settings: Any, resets: bool
) -> None:
    settings.WEBHOOK_CA_FILE = str(ca_file)
    # With TLS 1.3 the request is on its way already, and a server that closes over it loses what it has said.
    server.resets = resets
    stranger = issue(trustme.CA(), "stranger")
    refused = attempt(server.url, seal_client_certificate(stranger))
    if resets:
        assert refused.failure in (Failure.CONNECTION_LOST, Failure.TLS_FAILED)
        assert "client certificate" in refused.detail or "alert" in refused.detail
    else:
        assert refused.failure is Failure.TLS_FAILED
        assert "unknown ca" in refused.detail
    assert server.seen == []


def test_a_new_certificate_is_presented_on_a_new_connection_at_once(
    server: MutualServer, authority: trustme.CA, ca_file: Path
) -> None:
    before, after = issue(authority, "before"), issue(authority, "after")
    outcomes = through(ca_file, server.url, Identity(ONE, before), Identity(ONE, after), Identity(ONE, after))
    assert [outcome.status_code for outcome in outcomes] == [200] * 3
    assert server.seen == [("before", 1), ("after", 2), ("after", 2)]


def test_an_organization_with_many_certificates_does_not_push_out_anothers(
    authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_IDENTITIES", 3)
    monkeypatch.setattr(client_module, "MAX_IDENTITIES_PER_ORGANIZATION", 2)
    server = ClosingServer(authority)
    quiet = Identity(OTHER, issue(authority, "quiet"))
    greedy = [Identity(ONE, issue(authority, f"greedy-{number}")) for number in range(4)]
    with raw_server(server.handle) as server.port:
        outcomes = through(ca_file, server.url, quiet, *greedy, quiet)
    assert [outcome.status_code for outcome in outcomes] == [200] * 6
    # Its TLS context is still there, or its session couldn't be resumed.
    assert server.resumed == [*[False] * 5, True]


def test_a_session_is_resumed_for_the_same_identity_alone(authority: trustme.CA, ca_file: Path) -> None:
    server = ClosingServer(authority)
    mine, yours = Identity(ONE, issue(authority, "mine")), Identity(ONE, issue(authority, "yours"))
    with raw_server(server.handle) as server.port:
        outcomes = through(ca_file, server.url, mine, mine, yours)
    assert [outcome.status_code for outcome in outcomes] == [200] * 3
    assert server.resumed == [False, True, False]


def test_it_is_presented_through_a_proxy_to_the_endpoint(
    server: MutualServer, authority: trustme.CA, ca_file: Path
) -> None:
    with proxy() as way_out:
        url = f"http://127.0.0.1:{way_out.port}"
        (outcome,) = through(ca_file, server.url, Identity(ONE, issue(authority, "mine")), proxy_url=url)
    assert way_out.connections == 1
    assert outcome.status_code == 200
    assert server.names == ["mine"]


def test_no_more_contexts_are_kept_than_the_bound(
    server: MutualServer, authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_IDENTITIES", 2)
    identities = [Identity(ONE, issue(authority, f"client-{number}")) for number in range(4)]
    outcomes = through(ca_file, server.url, *identities, identities[0])
    assert [outcome.status_code for outcome in outcomes] == [200] * 5
    assert server.names == ["client-0", "client-1", "client-2", "client-3", "client-0"]


def test_one_that_has_expired_since_is_not_presented(authority: trustme.CA) -> None:
    issued = authority.issue_cert("old", not_after=NOW - datetime.timedelta(seconds=1))
    outcome = attempt("https://localhost:1/", encrypt("".join(parts(issued))))
    assert outcome.failure is Failure.TLS_FAILED
    assert "client certificate has expired" in outcome.detail


# --- what is taken ------------------------------------------------------------------------------------


def test_what_is_stored_is_what_was_given_and_what_is_shown_has_no_key(authority: trustme.CA) -> None:
    chain, key = parts(authority.issue_cert("client.example", common_name="client"))
    found = check_client_certificate("# a comment\n" + chain, key, NOW)
    assert "comment" not in found.pem
    assert "PRIVATE KEY" not in f"{found!r} {found.details}"
    assert found.details["subject"].startswith("CN=client")
    first = x509.load_pem_x509_certificate(chain.encode())
    assert found.details["expires_at"] == first.not_valid_after_utc.isoformat()
    assert open_client_certificate(seal_client_certificate(found)) == found


def _wrong() -> Iterator[tuple[str, str, str, str, str]]:
    authority = trustme.CA()
    chain, key = parts(authority.issue_cert("client.example"))
    other = authority.issue_cert("other.example")
    stale = parts(authority.issue_cert("client.example", not_after=NOW - datetime.timedelta(days=1)))
    early = parts(authority.issue_cert("client.example", not_before=NOW + datetime.timedelta(days=1)))
    loaded = load_pem_private_key(key.encode(), None)
    locked = loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")).decode()
    weak = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weak")])
    weak_certificate = (
        x509.CertificateBuilder(name, name, weak.public_key(), 5, NOW, NOW + datetime.timedelta(days=9))
        .sign(weak, SHA256()).public_bytes(Encoding.PEM).decode()
    )  # fmt: skip
    weak_key = weak.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    yield "another key", chain, parts(other)[1], "private_key", "is not the key of the first certificate"
    yield "expired", *stale, "certificate", "has expired"
    yield "not valid yet", *early, "certificate", "is not valid before"
    yield "the key with the chain", chain + key, key, "certificate", "give the key in `private_key`"
    yield "no certificate", "hello", key, "certificate", "is not a certificate in PEM"
    yield "a broken one", chain[:200] + "AAAA" + chain[300:], key, "certificate", "is not a certificate in PEM"
    yield "no key", chain, chain, "private_key", "is not a private key in PEM"
    yield "a passphrase", chain, locked, "private_key", "passphrase"
    yield "too large", chain + " " * 40_000, key, "certificate", "at most 32,768 characters"
    yield "too large a key", chain, key + " " * 40_000, "private_key", "at most 32,768 characters"
    yield "too many", parts(other)[0] * 11, parts(other)[1], "certificate", "at most 10 certificates"
    version = x509.load_pem_x509_certificate(chain.encode()).public_bytes(Encoding.DER)
    version = version.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04", 1)
    in_pem = f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(version).decode()}-----END CERTIFICATE-----\n"
    yield "an unknown version", in_pem, key, "certificate", "is not a certificate in PEM"
    signing = dsa.generate_private_key(1024)
    dsa_key = signing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    yield "a kind that TLS has given up", chain, dsa_key, "private_key", "must be an RSA or elliptic-curve key"
    yield "a weak key", weak_certificate, weak_key, "certificate", "is refused by OpenSSL"


@pytest.mark.parametrize(
    ("certificate", "key", "field", "words"), [pytest.param(*row[1:], id=row[0]) for row in _wrong()]
)
def test_what_cannot_be_presented_is_refused_with_its_reason(
    certificate: str, key: str, field: str, words: str
) -> None:
    with pytest.raises(CertificateError) as refusal:
        check_client_certificate(certificate, key, NOW)
    assert refusal.value.field == field
    assert words in str(refusal.value)
    assert "BEGIN" not in str(refusal.value) or "PEM (" in str(refusal.value)


def test_a_key_that_would_take_long_to_sign_with_is_refused_before_it_is_checked(authority: trustme.CA) -> None:
    chain, _ = parts(authority.issue_cert("client.example"))
    small = rsa.generate_private_key(65537, 1024).private_numbers()
    # A product of two numbers that aren't primes: to find that out takes minutes.
    p, q = (1 << 20_000) + 1, (1 << 20_001) + 1
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, small.d, small.dmp1, small.dmq1, small.iqmp, public)
    huge = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    key = huge.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    with pytest.raises(CertificateError, match="must have at most 4,096 bits"):
        check_client_certificate(chain, key, NOW)
