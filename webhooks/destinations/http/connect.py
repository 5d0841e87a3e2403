"""Opens connections straight to the endpoint, and checks each address where it is connected to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import Protocol

import aiohappyeyeballs

from webhooks.destinations.exchange import Exchange
from webhooks.destinations.http.connection import Connection, peer
from webhooks.destinations.http.egress_policy import (
    NOT_ALLOWED,
    Address,
    AddressNotAllowed,
    is_allowed,
    is_port_allowed,
    literal_address,
)
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.http.errors import ConnectFailed
from webhooks.destinations.http.resolver import MAX_ADDRESSES, make_resolver
from webhooks.destinations.http.target import Target

# RFC 8305 §5: the next address is tried when the one before hasn't connected in this time.
ATTEMPT_DELAY_SECONDS = 0.25


class Route(Protocol):
    """A way to reach endpoints: directly, or through a proxy."""

    async def connect(self, target: Target, exchange: Exchange, context: ssl.SSLContext) -> Connection:
        """Return a new connection on which a request to `target` can be sent, and note the times in `exchange`.

        context: for TLS with the target.
        Raises AddressNotAllowed, DnsFailed, ConnectFailed, ProxyFailed, ssl.SSLError.
        """
        ...

    def request_line(self, target: Target) -> str:
        """Return the first line of a POST, and the headers that the route needs beside the endpoint's."""
        ...

    async def close(self) -> None:
        """Release what is held; connections are not closed."""
        ...


class DirectRoute:
    """Connects to the endpoints themselves."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._resolver = make_resolver(egress)

    async def connect(self, target: Target, exchange: Exchange, context: ssl.SSLContext) -> Connection:
        """Connect to one of the target's allowed addresses; see `Route`."""
        literal = literal_address(target.host)
        if literal is not None:
            addresses = [literal]
        else:
            with exchange.timed("dns_us"):
                addresses = await self._resolver.resolve(target.host)
        with exchange.timed("connect_us"):
            sock = await open_socket(addresses, target.port, self._check)
        exchange.remote_address = peer(sock)
        if not target.is_tls:
            return await start(sock, None, target.host)
        with exchange.timed("tls_us"):
            return await start(sock, context, target.host)

    def request_line(self, target: Target) -> str:
        """Return the request line in origin form (RFC 9112 §3.2.1)."""
        return f"POST {target.path} HTTP/1.1\r\n"

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()

    def _check(self, address: Address, port: int) -> None:
        """Check the address right before a connection.  Raises AddressNotAllowed."""
        if not is_allowed(address, self._egress.allowed_networks) or not is_port_allowed(
            port, self._egress.allowed_ports
        ):
            raise AddressNotAllowed(NOT_ALLOWED)


class AddressCheck(Protocol):
    """Checks an address right before it is connected to."""

    def __call__(self, address: Address, port: int) -> None: ...


async def open_socket(addresses: Sequence[Address], port: int, check: AddressCheck | None) -> socket.socket:
    """Return a socket connected to the first address that can be, called in turn and soon side by side (RFC 8305).

    check: raises AddressNotAllowed for an address that the policy refuses.  Raises that, or ConnectFailed.
    """

    def make(info: tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]) -> socket.socket:
        family, kind, proto, _, sockaddr = info
        if check is not None:
            check(ipaddress.ip_address(sockaddr[0]), sockaddr[1])
        return socket.socket(family, kind, proto)

    of_4 = [address for address in addresses if address.version == 4][:MAX_ADDRESSES]
    of_6 = [address for address in addresses if address.version == 6][:MAX_ADDRESSES]
    infos = [
        (
            socket.AF_INET if address.version == 4 else socket.AF_INET6,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            "",
            (str(address), port) if address.version == 4 else (str(address), port, 0, 0),
        )
        for address in addresses
        if address in of_4 or address in of_6
    ]
    try:
        return await aiohappyeyeballs.start_connection(
            infos, happy_eyeballs_delay=ATTEMPT_DELAY_SECONDS, socket_factory=make
        )
    except AddressNotAllowed:
        raise
    except OSError as error:
        raise ConnectFailed from error


async def start(sock: socket.socket, context: ssl.SSLContext | None, host: str) -> Connection:
    """Return the connection over a connected socket, with TLS to `host` if there is a context.

    Raises ssl.SSLError for a handshake that fails, ConnectFailed for one that breaks off.
    """
    try:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(sock),
            sock=sock,
            ssl=context,
            server_hostname=tls_name(host) if context is not None else None,
        )
    except ssl.SSLError:
        raise
    except OSError as error:
        raise ConnectFailed from error
    return connection


def tls_name(host: str) -> str:
    """Return the name that a certificate has to hold: the host without the dot of the root (RFC 6066 §3)."""
    return host.removesuffix(".")
