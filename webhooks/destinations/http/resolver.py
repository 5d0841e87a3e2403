"""Host names become addresses here, and only those that the egress policy allows."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import socket
from collections.abc import Sequence

import pycares
from aiohttp import AsyncResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from webhooks.destinations.http.addresses import NOT_ALLOWED, AddressNotAllowed, Network, is_allowed
from webhooks.destinations.http.egress import Egress


class SystemResolver(AbstractResolver):
    """Asks the system's resolver, on threads of its own: a name server that hangs must not use up the loop's.

    threads: one for each request that may be in flight, so that no number of names whose servers hang keeps
    another name waiting.  They are made when they are needed.
    """

    def __init__(self, threads: int) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return every IPv4 and IPv6 address of `host`.  Raises OSError when it has none."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        )
        return [
            ResolveResult(
                hostname=host, host=str(sockaddr[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, sockaddr in found
            if kind in (socket.AF_INET, socket.AF_INET6)
        ]

    async def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class VettingResolver(AbstractResolver):
    """Keeps only those of another resolver's addresses that may be called."""

    def __init__(self, resolver: AbstractResolver, allowed: Sequence[Network]) -> None:
        self._resolver = resolver
        self._allowed = tuple(allowed)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the allowed addresses of `host`.  Raises AddressNotAllowed when it has others only."""
        found = await self._resolver.resolve(host, port, family)
        results = [one for one in found if is_allowed(ipaddress.ip_address(one["host"]), self._allowed)]
        if not results:
            raise AddressNotAllowed(NOT_ALLOWED)
        return results

    async def close(self) -> None:
        """Close the other resolver."""
        await self._resolver.close()


def make_resolver(egress: Egress) -> VettingResolver:
    """Return the resolver that `egress` asks for: the named servers', or the system's."""
    if not egress.dns_servers:
        return VettingResolver(SystemResolver(egress.connections), egress.allowed_networks)
    # Only these servers, and the name as it stands: no hosts file, no search domains.
    named = AsyncResolver(nameservers=egress.dns_servers, lookups="b", flags=pycares.ARES_FLAG_NOSEARCH, timeout=2.0)
    return VettingResolver(named, egress.allowed_networks)
