"""Whose request it is: what a client writes into `X-Forwarded-For` neither hides it nor blames somebody else."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest
from django.test import Client
from django.urls import reverse

from core.client_address import client_address, client_network, lockout_address
from core.front_door.http import Message, Request
from devstack import processes
from orgs.models import AuditEntry, Organization
from tests.conftest import ApiClient
from tests.servers import postgres

PEER = "10.0.0.1"
PASSWORD = "correct horse battery staple"


def request_from(peer: str, forwarded: str | None) -> HttpRequest:
    """Return a request as the server hands it over; `forwarded` is its X-Forwarded-For."""
    request = HttpRequest()
    request.META["REMOTE_ADDR"] = peer
    if forwarded is not None:
        request.META["HTTP_X_FORWARDED_FOR"] = forwarded
    return request


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        # Nobody is trusted: the header is the client's own.
        (0, None, PEER),
        (0, "203.0.113.1", PEER),
        # The entry of the outermost trusted proxy; what stands before it is the client's own.
        (1, "203.0.113.1", "203.0.113.1"),
        (1, "6.6.6.6, 203.0.113.1", "203.0.113.1"),
        (1, "6.6.6.6,203.0.113.1", "203.0.113.1"),
        (2, "6.6.6.6, 203.0.113.1, 10.0.0.2", "203.0.113.1"),
        # A port doesn't make another client.
        (1, "203.0.113.9:40001", "203.0.113.9"),
        (2, "203.0.113.9:1, 10.0.0.2:65535", "203.0.113.9"),
        (1, "[2001:db8::1]:443", "2001:db8::1"),
        (1, "[2001:db8::1]", "2001:db8::1"),
        # Nor does another spelling.
        (1, "2001:0DB8:0::1", "2001:db8::1"),
        (1, "::ffff:203.0.113.9", "203.0.113.9"),
        (1, "[::ffff:203.0.113.9]:80", "203.0.113.9"),
        (1, "fe80::1%eth0", "fe80::1"),
        (1, "  203.0.113.1\t", "203.0.113.1"),
        # What is missing or no address: the last one that a trusted hop reported.
        (1, None, PEER),
        (1, "", PEER),
        (1, " , ", PEER),
        (1, "unknown", PEER),
        (1, "203.0.113.1, ", PEER),
        (1, "203.0.113.9:", PEER),
        (1, "203.0.113.9:x", PEER),
        (1, "203.0.113.9:123456", PEER),
        (1, "203.0.113.999", PEER),
        (1, "2001:db8::1]:443", PEER),
        (1, "[]:443", PEER),
        (1, "[203.0.113.9]x", PEER),
        (1, "203.0.113.9;drop", PEER),
        (1, "٢٠٣.0.113.9", PEER),
        (2, "203.0.113.1", "203.0.113.1"),
        (2, "unknown, 203.0.113.2", "203.0.113.2"),
        (2, "203.0.113.1, unknown", PEER),
        (3, "203.0.113.1, unknown, 10.0.0.2", "10.0.0.2"),
    ],
)
def test_the_client_is_who_the_trusted_proxies_saw(
    settings: LazySettings, proxies: int, forwarded: str | None, address: str
) -> None:
    settings.TRUSTED_PROXIES = proxies
    assert client_address(request_from(PEER, forwarded)) == address


@pytest.mark.parametrize(
    ("proxies", "lines", "address"),
    [
        (0, ["203.0.113.1"], PEER),
        (1, [], PEER),
        (1, ["203.0.113.1"], "203.0.113.1"),
        (1, ["6.6.6.6", "203.0.113.1"], "203.0.113.1"),
        (2, ["6.6.6.6, 203.0.113.1", "10.0.0.2"], "203.0.113.1"),
    ],
)
def test_the_front_door_goes_by_the_same_rule(
    settings: LazySettings, proxies: int, lines: list[str], address: str
) -> None:
    async def receive() -> Message:
        raise AssertionError("the body is nobody's business here")

    settings.TRUSTED_PROXIES = proxies
    headers = [(b"x-forwarded-for", line.encode()) for line in lines]
    assert client_address(Request({"headers": headers, "client": (PEER, 40001)}, receive, "id")) == address


@pytest.mark.parametrize(("proxies", "address"), [(0, ""), (1, "203.0.113.1")])
def test_a_peer_on_a_unix_socket_has_no_address(settings: LazySettings, proxies: int, address: str) -> None:
    settings.TRUSTED_PROXIES = proxies
    request = request_from("", "203.0.113.1")
    assert client_address(request) == address
    assert lockout_address(request) == (address or None)


def test_an_ipv6_client_is_counted_by_its_network() -> None:
    assert client_network("2001:db8::1") == client_network("2001:db8::ffff:2") == "2001:db8::"
    assert client_network("2001:db8:0:1::1") == "2001:db8:0:1::"
    assert client_network("2001:db8::ffff:ffff:ffff:ffff") == "2001:db8::"
    assert client_network("203.0.113.9") == "203.0.113.9"
    assert client_network("") == ""


# --- the API's limit on failed authentications ------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("203.0.113.9:40001", "203.0.113.9:40002"),
        ("[2001:db8::1]:443", "[2001:db8::1]:444"),
        ("[2001:db8::1]:443", "2001:db8::2"),
        ("garbage-1", "garbage-2"),
        ("9.9.9.1, x1", "9.9.9.2, x2"),
    ],
)
def test_a_port_or_garbage_doesnt_void_the_limit_on_failures(
    db: None, settings: LazySettings, first: str, second: str
) -> None:
    settings.TRUSTED_PROXIES = 1
    settings.AUTH_FAILURES_PER_MINUTE = 1
    client = ApiClient("trk_wrong_wrong")
    assert client.get("/api/me", **{"X-Forwarded-For": first}).status_code == 401
    assert client.get("/api/me", **{"X-Forwarded-For": second}).status_code == 429


# --- the admin's lock -------------------------------------------------------------------------------


@pytest.fixture
def user(db: None, settings: Any) -> User:
    """Return a member of staff, whom one wrong password locks."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.AXES_FAILURE_LIMIT = 1
    return User.objects.create_superuser("olga", password=PASSWORD)


def log_in(password: str, forwarded: str, peer: str = PEER) -> int:
    """Send the log-in form and return the answer's status."""
    client = Client(REMOTE_ADDR=peer, headers={"X-Forwarded-For": forwarded})
    return client.post(reverse("admin:login"), {"username": "olga", "password": password}).status_code


@pytest.mark.parametrize(
    ("proxies", "attacker", "owner", "locked"),
    [
        # Nobody is trusted: all who come from this peer are one, whatever they write.
        (0, "203.0.113.1", "203.0.113.2", True),
        # Behind one proxy, each client is locked for itself ...
        (1, "203.0.113.1", "203.0.113.2", False),
        (1, "203.0.113.1", "203.0.113.1", True),
        # ... can't lock out somebody by naming an address ...
        (1, "203.0.113.2, 203.0.113.1", "203.0.113.2", False),
        # ... and can't get around its own lock, by a name, a port or a neighboring IPv6 address.
        (1, "1.1.1.1, 203.0.113.1", "2.2.2.2, 203.0.113.1", True),
        (1, "203.0.113.1:1000", "203.0.113.1:1001", True),
        (1, "[2001:db8::1]:1000", "2001:db8::2", True),
        (1, "2001:db8::1", "2001:db8:0:1::1", False),
        (1, "fe80::1%eth0", "fe80::1", True),
        (1, "nonsense", "unknown", True),
        (2, "203.0.113.1, 10.0.0.2", "203.0.113.2, 10.0.0.2", False),
        (2, "203.0.113.1, 10.0.0.2", "6.6.6.6, 203.0.113.1, 10.0.0.3", True),
    ],
)
def test_the_admins_lock_follows_the_trusted_proxies(
    user: User, settings: LazySettings, proxies: int, attacker: str, owner: str, locked: bool
) -> None:
    settings.TRUSTED_PROXIES = proxies
    assert log_in("wrong", attacker) == 429
    assert log_in(PASSWORD, owner) == (429 if locked else 302)


def test_without_trusted_proxies_another_peer_isnt_locked_by_a_header(user: User) -> None:
    assert log_in("wrong", "203.0.113.2", peer="203.0.113.1") == 429
    assert log_in(PASSWORD, "203.0.113.1", peer="203.0.113.2") == 302


def test_the_audit_log_and_the_lock_name_the_same_client(user: User, settings: LazySettings) -> None:
    settings.TRUSTED_PROXIES = 1
    log_in("wrong", "6.6.6.6, 203.0.113.9:40001")
    assert AuditEntry.objects.get(action="login.failed").address == "203.0.113.9"
    assert AccessAttempt.objects.get().ip_address == "203.0.113.9"


def test_no_module_but_one_reads_where_a_request_comes_from() -> None:
    root = Path(__file__).resolve().parents[2]
    packages = ("core", "orgs", "events", "webhooks", "portal", "console", "triggers_project")
    readers = [
        str(path.relative_to(root))
        for package in packages
        for path in (root / package).rglob("*.py")
        if any(word in path.read_text() for word in ("REMOTE_ADDR", "X_FORWARDED_FOR", "REMOTE_HOST"))
    ]
    passing_on = {"core/front_door/http.py", "core/front_door/wsgi_bridge.py"}
    assert set(readers) - passing_on == {"core/client_address.py"}


# --- through gunicorn -------------------------------------------------------------------------------


@pytest.mark.end_to_end
@pytest.mark.django_db(transaction=True)
def test_several_headers_are_one_list_through_gunicorn(organization: Organization, tmp_path: Path) -> None:
    environment = {
        "DATABASE_URL": postgres.url(connection.settings_dict["NAME"]),
        "TRUSTED_PROXIES": "1",
        "AUTH_FAILURES_PER_MINUTE": "1",
    }
    process, base = processes.web(tmp_path / "web.log", env=environment, workers=1)

    def ask(*forwarded: str) -> bytes:
        """Ask with a wrong key and these X-Forwarded-For headers; return the status."""
        headers = "".join(f"X-Forwarded-For: {value}\r\n" for value in forwarded)
        with socket.create_connection(("127.0.0.1", int(base.rsplit(":", 1)[1])), timeout=30) as connected:
            head = "GET /api/me HTTP/1.1\r\nHost: localhost\r\nX-API-Key: wrong\r\nConnection: close\r\n"
            connected.sendall(f"{head}{headers}\r\n".encode())
            return connected.makefile("rb").readline().split()[1]

    try:
        assert ask("1.1.1.1", "203.0.113.1:1") == b"401"
        assert ask("2.2.2.2, 3.3.3.3", "203.0.113.1:2") == b"429"
        assert ask("203.0.113.1", "[2001:db8::1]:1") == b"401"
        assert ask("[2001:db8::2]:2") == b"429"
        # The underscore's spelling would be the same variable in the environment: gunicorn drops it.
        assert ask("203.0.113.1:3\r\nX_Forwarded_For: 9.9.9.9") == b"429"
    finally:
        process.stop()
