"""Egress, end to end: real names, sockets, certificates and proxies.

Of this machine's loopback addresses one plays the public internet (the operator allows it) and the others
the inside.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from django.conf import LazySettings

from orgs.models import Organization
from tests.security.egress import STRICT, allowing, deliver, send
from tests.security.listeners import Listener, Names, listen, proxy, serve
from tests.security.test_addresses import LOOPBACK_SPELLINGS, METADATA, METADATA_SPELLINGS, REFUSED_RANGES
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.egress_policy import NOT_ALLOWED
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.outcome import Failure

PUBLIC, INSIDE = "127.0.0.2", "127.0.0.1"
OUT = f"{PUBLIC}/32"


@pytest.fixture
def names() -> Iterator[Names]:
    """Return a name server; its address is in `names.server`."""
    server = Names()
    with server.running() as address:
        server.server = address  # type: ignore[attr-defined]
        yield server


def _asking(names: Any, *networks: str, **changes: Any) -> Egress:
    return allowing(*networks, dns_servers=(names.server,), **changes)


@pytest.fixture
def inside() -> Iterator[Listener]:
    """Return a server on the inside, which nobody may reach."""
    with listen(INSIDE) as listener:
        yield listener


# --- addresses in the URL -----------------------------------------------------------------------------


def test_no_spelling_of_an_inner_address_connects(inside: Listener) -> None:
    urls = [f"http://{host}:{inside.port}/hook" for host in LOOPBACK_SPELLINGS + METADATA_SPELLINGS]
    urls += [
        f"http://user@127.0.0.1:{inside.port}/", f"http://127.0.0.1:{inside.port}\\@public.example/",
        f"HTTP://LOCALHOST:{inside.port}/", f"http://localhost.:{inside.port}/", f"http://LocalHost:{inside.port}/",
        f"http://１２７.０.０.１:{inside.port}/", f"http://127。0。0。1:{inside.port}/", f"http://127｡0｡0｡1:{inside.port}/",
        f"http://ｌｏｃａｌｈｏｓｔ:{inside.port}/", f"http://①②⑦.⓪.⓪.①:{inside.port}/", f"http://[::1%25lo]:{inside.port}/",
        f"http://[::ffff:127.0.0.1%25lo]:{inside.port}/", f"http://loc\u00adalhost:{inside.port}/",
        f"http://%31%32%37.0.0.1:{inside.port}/", f"http://xn--localhost:{inside.port}/",
    ]  # fmt: skip
    answers = send(STRICT, *urls)
    for url, answer in zip(urls, answers, strict=True):
        assert answer.failure in {Failure.ADDRESS_NOT_ALLOWED, Failure.DNS_FAILED}, f"{url}: {answer}"
        assert answer.status_code is None
    assert inside.connections == 0


def test_no_address_of_a_refused_range_is_called_as_a_literal_or_behind_a_name(names: Any) -> None:
    addresses = [str(ipaddress.ip_network(network)[-1]) for network in REFUSED_RANGES] + METADATA
    for number, address in enumerate(addresses):
        names.records[f"n{number}.example"] = [address]
    literals = [f"http://[{text}]/" if ":" in text else f"http://{text}/" for text in addresses]
    behind_names = [f"http://n{number}.example/" for number in range(len(addresses))]
    answers = send(_asking(names), *literals, *behind_names)
    for url, answer in zip([*literals, *behind_names], answers, strict=True):
        assert (answer.failure, answer.detail) == (Failure.ADDRESS_NOT_ALLOWED, NOT_ALLOWED), f"{url}: {answer}"


def test_a_mapped_address_behind_a_name_is_judged_by_what_it_maps(names: Any, inside: Listener) -> None:
    names.records["mapped.example"] = ["::ffff:7f00:1"]
    [answer] = send(_asking(names), f"http://mapped.example:{inside.port}/")
    assert answer.failure is Failure.ADDRESS_NOT_ALLOWED
    assert inside.connections == 0


def test_the_system_s_own_names_are_judged_by_what_they_mean(inside: Listener) -> None:
    [answer] = send(STRICT, f"http://localhost:{inside.port}/")
    assert (answer.failure, answer.detail) == (Failure.ADDRESS_NOT_ALLOWED, NOT_ALLOWED)
    assert inside.connections == 0


def test_an_operator_s_networks_are_reached_and_no_others(names: Any) -> None:
    names.records["a.example"] = [PUBLIC]
    with listen(PUBLIC) as out, listen("127.0.0.3", out.port) as other:
        urls = [f"http://a.example:{out.port}/", f"http://{PUBLIC}:{out.port}/", f"http://127.0.0.3:{out.port}/"]
        answers = send(_asking(names, OUT), *urls)
    assert [answer.status_code for answer in answers] == [200, 200, None]
    assert len(out.requests) == 2
    assert other.connections == 0


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[PUBLIC, INSIDE], [INSIDE, PUBLIC], [INSIDE, "::1", PUBLIC]])
def test_of_mixed_answers_only_the_public_address_is_called(names: Any, order: list[str]) -> None:
    names.records["mixed.example"] = order
    with listen(PUBLIC) as out, listen(INSIDE, out.port) as private, listen("::1", out.port) as private6:
        answers = send(_asking(names, OUT), *[f"http://mixed.example:{out.port}/"] * 5)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert private.connections == private6.connections == 0


def test_mixed_answers_do_not_fall_back_to_the_private_address(names: Any, inside: Listener) -> None:
    names.records["mixed.example"] = [PUBLIC, INSIDE]  # nobody listens at the public one
    answers = send(_asking(names, OUT), *[f"http://mixed.example:{inside.port}/"] * 3)
    assert {answer.failure for answer in answers} == {Failure.CONNECTION_REFUSED}
    assert inside.connections == 0


def test_a_name_that_turns_inward_is_refused_at_the_next_sending(names: Any) -> None:
    names.records["rebind.example"] = [PUBLIC]
    with listen(PUBLIC) as out, listen(INSIDE, out.port) as private:
        out.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        url = f"http://rebind.example:{out.port}/"
        [first] = send(_asking(names, OUT), url)
        names.records["rebind.example"] = [INSIDE]
        [second] = send(_asking(names, OUT), url)
    assert first.status_code == 200
    assert (second.failure, second.detail) == (Failure.ADDRESS_NOT_ALLOWED, NOT_ALLOWED)
    assert private.connections == 0


def test_a_name_that_turns_inward_between_two_connections_of_one_worker_is_refused(names: Any) -> None:
    names.records["rebind.example"] = [PUBLIC]
    turned = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

    with listen(PUBLIC) as out, listen(INSIDE, out.port) as private:
        out.answer = turned
        answers = []

        async def run() -> None:
            transport = HttpClient(_asking(names, OUT))
            for address in (PUBLIC, INSIDE, INSIDE, PUBLIC):
                names.records["rebind.example"] = [address]
                answers.append(await transport.send(f"http://rebind.example:{out.port}/", [], b"{}"))
            await transport.aclose()

        asyncio.run(run())
    assert [answer.status_code for answer in answers] == [200, None, None, 200]
    assert private.connections == 0


def test_the_search_list_and_the_hosts_file_are_not_asked_beside_the_named_servers(names: Any) -> None:
    [answer] = send(_asking(names, "127.0.0.0/8"), "http://localhost.example/")
    assert answer.failure is Failure.DNS_FAILED
    assert {question.split()[1] for question in names.asked} == {"localhost.example"}


@pytest.mark.django_db(transaction=True)
def test_a_subscription_whose_name_turns_inward_gets_nothing_and_its_owner_learns_nothing(
    organization: Organization, api: Any, names: Any, settings: LazySettings
) -> None:
    settings.WEBHOOK_DNS_SERVERS = (names.server,)
    settings.WEBHOOK_ALLOWED_SUBNETS = (ipaddress.ip_network(OUT),)
    settings.DNS_CACHE_TTL = 0.0
    names.records["rebind.example"] = [PUBLIC]
    with listen(PUBLIC) as out, listen(INSIDE, out.port) as private:
        body = {"url": f"http://rebind.example:{out.port}/hook", "event_types": ["*"]}
        assert api.post("/api/subscriptions", body).status_code == 201
        api.post("/api/events", {"type": "a", "data": 1})
        deliver()
        names.records["rebind.example"] = [INSIDE]
        event = api.post("/api/events", {"type": "a", "data": 2}).json()["id"]
        deliver()
        assert [request.line for request in out.requests] == ["POST /hook HTTP/1.1"]
        assert private.connections == 0
    [delivery] = api.get(f"/api/deliveries?event={event}").json()["data"]
    text = api.get(f"/api/deliveries/{delivery['id']}").content.decode()
    [attempt] = api.get(f"/api/deliveries/{delivery['id']}").json()["attempts"]
    assert attempt["error"] == "address_not_allowed"
    assert attempt["error_detail"] == NOT_ALLOWED
    assert attempt["status_code"] is None
    assert INSIDE not in text


# --- host, SNI, certificate ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a certificate authority; its certificate is in `pem`."""
    made = trustme.CA()
    made.pem = tmp_path_factory.mktemp("ca") / "ca.pem"  # type: ignore[attr-defined]
    made.cert_pem.write_to_path(str(made.pem))  # type: ignore[attr-defined]
    return made


def _tls(authority: trustme.CA, *identities: str) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*identities).configure_cert(context)
    return context


def test_the_checked_address_is_called_under_the_name_of_the_url(names: Any, authority: Any) -> None:
    names.records["shop.example"] = [PUBLIC]
    with listen(PUBLIC, context=_tls(authority, "shop.example")) as out:
        [answer] = send(_asking(names, OUT, ca_file=str(authority.pem)), f"https://shop.example:{out.port}/a?b=c")
    assert answer.status_code == 200
    assert out.server_names == ["shop.example"]
    assert out.requests[0].line == "POST /a?b=c HTTP/1.1"
    assert out.requests[0].headers["host"] == f"shop.example:{out.port}"


@pytest.mark.parametrize("identity", ["other.example", PUBLIC])
def test_a_certificate_for_another_name_is_refused(names: Any, authority: Any, identity: str) -> None:
    names.records["shop.example"] = [PUBLIC]
    with listen(PUBLIC, context=_tls(authority, identity)) as out:
        [answer] = send(_asking(names, OUT, ca_file=str(authority.pem)), f"https://shop.example:{out.port}/")
    assert answer.failure is Failure.TLS_FAILED
    assert answer.detail == (
        "The certificate was not accepted: Hostname mismatch, certificate is not valid for 'shop.example'."
    )
    assert not out.requests


def test_a_certificate_of_an_unknown_authority_is_refused(names: Any, authority: Any) -> None:
    names.records["shop.example"] = [PUBLIC]
    with listen(PUBLIC, context=_tls(authority, "shop.example")) as out:
        [answer] = send(_asking(names, OUT), f"https://shop.example:{out.port}/")
    assert answer.failure is Failure.TLS_FAILED
    assert "unable to get local issuer certificate" in answer.detail
    assert not out.requests


# --- what the tenant may read -------------------------------------------------------------------------


def test_no_failure_tells_where_a_name_leads(names: Any, authority: Any, inside: Listener) -> None:
    names.records["shop.example"] = [PUBLIC]
    names.records["inner.example"] = [INSIDE]
    names.records["unreachable.example"] = ["127.255.255.255"]

    def drop(stream: socket.socket) -> None:
        stream.recv(1)

    def babble(stream: socket.socket) -> None:
        stream.recv(1)
        stream.sendall(b"SSH-2.0-OpenSSH_9.7\r\nHTTP/1.1 oh no\r\n\r\n")

    with serve(drop, PUBLIC) as dropping, serve(babble, PUBLIC) as babbling:
        urls = {
            f"https://shop.example:{inside.port}/": Failure.CONNECTION_REFUSED,
            f"http://shop.example:{dropping}/": Failure.CONNECTION_LOST,
            f"https://shop.example:{dropping}/": None,
            f"http://shop.example:{babbling}/": Failure.INVALID_RESPONSE,
            f"https://shop.example:{babbling}/": Failure.TLS_FAILED,
            f"http://inner.example:{inside.port}/": Failure.ADDRESS_NOT_ALLOWED,
            "http://unreachable.example/": Failure.CONNECTION_FAILED,
            "http://unknown.example/": Failure.DNS_FAILED,
        }
        answers = send(_asking(names, OUT, "127.255.255.255/32"), *urls)
    for (url, failure), answer in zip(urls.items(), answers, strict=True):
        assert answer.failure is not None
        if failure is not None:
            assert answer.failure is failure, f"{url}: {answer}"
        for secret in (
            PUBLIC,
            INSIDE,
            "127.255.255.255",
            names.server,
            "Errno",
            "ssl:",
            "_ssl.c",
            "Error",
            "Connect call",
        ):
            assert secret not in answer.detail, f"{url}: {answer}"


# --- redirects, schemes, ports ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_no_redirect_is_followed(inside: Listener, status: int) -> None:
    with listen(PUBLIC) as out:
        out.answer = (
            f"HTTP/1.1 {status} Moved\r\nlocation: http://{PUBLIC}:{out.port}/b\r\ncontent-length: 0\r\n\r\n".encode()
        )
        [answer] = send(allowing(OUT), f"http://{PUBLIC}:{out.port}/a")
        assert (answer.failure, answer.status_code) == (Failure.REDIRECT, status)
        assert [request.line for request in out.requests] == ["POST /a HTTP/1.1"]
        inward = f"http://{INSIDE}:{inside.port}/"
        head = f"HTTP/1.1 {status} Moved\r\nlocation: {inward}\r\nrefresh: 0; url={inward}\r\ncontent-length: 0\r\n\r\n"
        out.answer = head.encode()
        send(allowing(OUT, f"{INSIDE}/32"), f"http://{PUBLIC}:{out.port}/a")
    assert inside.connections == 0


@pytest.mark.parametrize("scheme", ["ftp", "file", "gopher", "unix", "ws", "http+unix", "javascript", "data"])
def test_no_other_scheme_leaves(inside: Listener, scheme: str) -> None:
    [answer] = send(allowing("127.0.0.0/8"), f"{scheme}://{INSIDE}:{inside.port}/")
    assert answer.failure is Failure.ADDRESS_NOT_ALLOWED
    assert inside.connections == 0


def test_only_ports_of_the_policy_are_called(inside: Listener) -> None:
    url = f"http://{INSIDE}:{inside.port}/"
    [refused] = send(allowing("127.0.0.0/8", allowed_ports=frozenset({80, 443})), url)
    assert refused.failure is Failure.ADDRESS_NOT_ALLOWED
    assert inside.connections == 0
    [allowed] = send(allowing("127.0.0.0/8", allowed_ports=frozenset({inside.port})), url)
    assert allowed.status_code == 200
    for port in (22, 25, 5432, 6379, 11211):
        [answer] = send(allowing("127.0.0.0/8"), f"http://{INSIDE}:{port}/")
        assert answer.failure is Failure.ADDRESS_NOT_ALLOWED
        assert answer.detail == f"port {port} is not allowed"


# --- proxies ------------------------------------------------------------------------------------------


def test_no_proxy_of_the_environment_is_used(tmp_path: Path) -> None:
    code = """
import sys, django
django.setup()
from tests.security.egress import allowing, send
for answer in send(allowing("127.0.0.2/32"), sys.argv[1]):
    print(answer.status_code)
"""
    (tmp_path / ".netrc").write_text("machine 127.0.0.2 login me password netrc-secret\n")
    with proxy() as way_out, listen(PUBLIC) as out:
        given = f"http://127.0.0.1:{way_out.port}"
        variables = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), given)
        variables |= {name.lower(): value for name, value in variables.items()}
        done = subprocess.run(
            [sys.executable, "-c", code, f"http://{PUBLIC}:{out.port}/"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **variables, "HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout == "200\n", done.stderr
    assert way_out.connections == 0
    assert "authorization" not in out.requests[0].headers


def test_the_operator_s_proxy_passes_http_on_with_the_whole_url() -> None:
    with proxy() as way_out:
        way_out.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        [answer] = send(
            allowing(proxy_url=f"http://127.0.0.1:{way_out.port}"), "http://shop.example/a?b=c", body=b"{1}"
        )
    assert answer.status_code == 204
    [request] = way_out.requests
    assert request.line == "POST http://shop.example/a?b=c HTTP/1.1"
    assert request.headers["host"] == "shop.example"
    assert request.body == b"{1}"


def test_the_operator_s_proxy_tunnels_https_and_sees_no_content(authority: Any) -> None:
    with proxy() as way_out, listen(INSIDE, context=_tls(authority, "shop.example")) as out:
        egress = allowing(proxy_url=f"http://user:proxy-secret@127.0.0.1:{way_out.port}", ca_file=str(authority.pem))
        [answer] = send(egress, f"https://shop.example:{out.port}/a")
    assert answer.status_code == 200
    [tunnel] = way_out.requests
    assert tunnel.line == f"CONNECT shop.example:{out.port} HTTP/1.1"
    assert tunnel.headers["proxy-authorization"].startswith("Basic ")
    assert "x-test" not in tunnel.headers
    assert out.server_names == ["shop.example"]
    assert "proxy-authorization" not in out.requests[0].headers, "the receiver doesn't get the proxy's password"


def test_behind_the_proxy_the_receiver_s_certificate_still_counts(authority: Any) -> None:
    with proxy() as way_out, listen(INSIDE, context=_tls(authority, "other.example")) as out:
        egress = allowing(proxy_url=f"http://127.0.0.1:{way_out.port}", ca_file=str(authority.pem))
        [answer] = send(egress, f"https://shop.example:{out.port}/a")
    assert answer.failure is Failure.TLS_FAILED
    assert not out.requests


def test_with_a_proxy_inner_literals_are_still_refused_here() -> None:
    with proxy() as way_out:
        answers = send(
            allowing(proxy_url=f"http://127.0.0.1:{way_out.port}"), "http://169.254.169.254/", "http://127.1/"
        )
    assert {answer.failure for answer in answers} == {Failure.ADDRESS_NOT_ALLOWED}
    assert way_out.connections == 0


def test_a_proxy_that_refuses_or_is_away_is_told_apart_and_not_named() -> None:
    def refuse(stream: socket.socket) -> None:
        stream.recv(65536)
        stream.sendall(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n")

    with serve(refuse, INSIDE) as port:
        [refused] = send(allowing(proxy_url=f"http://u:proxy-secret@127.0.0.1:{port}"), "https://shop.example/")
    [away] = send(allowing(proxy_url=f"http://u:proxy-secret@127.0.0.1:{port}"), "http://shop.example/")
    for answer in (refused, away):
        assert answer.failure is Failure.PROXY_FAILED
        assert answer.detail == "The egress proxy did not pass the request on."
