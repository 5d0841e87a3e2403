"""An address is judged where the connection is made, whatever was found out about it before.

A policy that changes its mind between two looks plays everything that can go wrong in front of the connection: a
resolver that lets an inner address through, a cached address, a name that leads elsewhere a moment later.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.security.egress import STRICT
from tests.security.listeners import Listener, Names, listen
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.outcome import Failure, Outcome

INSIDE = "127.0.0.1"
NAME = "shop.example"
# Each request gets a connection of its own, so that each is a new decision.
ONE_REQUEST = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Policy:
    """Allows the inside for the first `looks` times that anybody asks, and counts how often that is."""

    def __init__(self, looks: float = float("inf")) -> None:
        self.looks = looks
        self.asked = 0

    def decide(self) -> bool:
        self.asked += 1
        return self.asked <= self.looks


class PolicyNetwork(ipaddress.IPv4Network):
    """An operator's allowed network that holds what its policy says at the moment."""

    policy: Policy

    def __contains__(self, address: Any) -> bool:
        return super().__contains__(address) and self.policy.decide()


class PolicyPorts(frozenset[int]):
    """An operator's allowed ports that hold what their policy says at the moment."""

    policy: Policy

    def __contains__(self, port: object) -> bool:
        return super().__contains__(port) and self.policy.decide()


def network_of(policy: Policy) -> dict[str, Any]:
    """Return the egress option that asks `policy` about the inner address."""
    network = PolicyNetwork(f"{INSIDE}/32")
    network.policy = policy
    return {"allowed_networks": (network,)}


def ports_of(policy: Policy, port: int) -> dict[str, Any]:
    """Return the egress options that allow the inner address and ask `policy` about the port."""
    ports = PolicyPorts({port})
    ports.policy = policy
    return {"allowed_networks": (ipaddress.ip_network(f"{INSIDE}/32"),), "allowed_ports": ports}


@pytest.fixture
def inside() -> Iterator[Listener]:
    with listen(INSIDE) as listener:
        listener.answer = ONE_REQUEST
        yield listener


@pytest.fixture
def dns() -> Iterator[tuple[str, ...]]:
    """Return the servers to ask, which say that NAME leads inside."""
    names = Names()
    names.records[NAME] = [INSIDE]
    with names.running() as server:
        yield (server,)


def send(egress: Egress, *steps: str | Callable[[], None]) -> list[Outcome]:
    """Send to the URLs among `steps` through one client, one after the other, and call the functions."""

    async def run() -> list[Outcome]:
        client = HttpClient(egress)
        outcomes = []
        try:
            for step in steps:
                if callable(step):
                    step()
                else:
                    outcomes.append(await client.send(step, [], b"{}"))
        finally:
            await client.aclose()
        return outcomes

    return asyncio.run(run())


def test_an_address_is_looked_at_again_at_the_connection_and_each_look_can_stop_it(
    inside: Listener, dns: tuple[str, ...]
) -> None:
    url = f"http://{NAME}:{inside.port}/"
    always = Policy()
    [allowed] = send(dataclasses.replace(STRICT, dns_servers=dns, **network_of(always)), url)
    assert allowed.status_code == 200
    assert always.asked >= 2, "once for what the name means, and once for what is connected to"
    for looks in range(always.asked):
        [refused] = send(dataclasses.replace(STRICT, dns_servers=dns, **network_of(Policy(looks))), url)
        assert refused.failure is Failure.ADDRESS_NOT_ALLOWED, f"{looks} looks: {refused}"
    assert inside.connections == 1


def test_a_port_is_looked_at_again_at_the_connection_and_each_look_can_stop_it(inside: Listener) -> None:
    url = f"http://{INSIDE}:{inside.port}/"
    always = Policy()
    [allowed] = send(dataclasses.replace(STRICT, **ports_of(always, inside.port)), url)
    assert allowed.status_code == 200
    assert always.asked >= 2, "once for the URL, and once for what is connected to"
    for looks in range(always.asked):
        [refused] = send(dataclasses.replace(STRICT, **ports_of(Policy(looks), inside.port)), url)
        assert refused.failure is Failure.ADDRESS_NOT_ALLOWED, f"{looks} looks: {refused}"
    assert inside.connections == 1


@pytest.mark.parametrize("host", [NAME, INSIDE])
def test_what_was_found_for_an_earlier_request_opens_no_later_connection(
    inside: Listener, dns: tuple[str, ...], host: str
) -> None:
    """The name's address is cached, and the URL was checked: neither counts once the policy has changed."""
    policy = Policy()
    egress = dataclasses.replace(STRICT, dns_servers=dns, dns_cache_ttl=3600, **network_of(policy))

    def withdraw() -> None:
        policy.looks = 0

    url = f"http://{host}:{inside.port}/"
    first, second, third = send(egress, url, withdraw, url, url)
    assert first.status_code == 200
    assert (second.failure, third.failure) == (Failure.ADDRESS_NOT_ALLOWED, Failure.ADDRESS_NOT_ALLOWED)
    assert inside.connections == 1
