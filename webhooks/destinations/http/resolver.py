"""Resolves host names to addresses, and only to those that the egress policy allows."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import socket
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Protocol

import aiodns
import pycares

from webhooks.destinations.http.egress_policy import NOT_ALLOWED, Address, AddressNotAllowed, Network, is_allowed
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.http.errors import DnsFailed

MAX_CACHED_NAMES = 10_000
# The most addresses of each family: of a name with hundreds of addresses, we don't try all.
MAX_ADDRESSES = 4


class Resolver(Protocol):
    """Finds the addresses of names."""

    async def resolve(self, host: str) -> list[Address]:
        """Return the addresses of `host`, at least one.  Raises DnsFailed and AddressNotAllowed."""
        ...

    async def close(self) -> None:
        """Release what is held."""
        ...


class SystemResolver:
    """Asks the system's resolver, on separate threads: a name server that hangs must not use up the loop's.

    threads: one for each request that may be in flight, so that names whose servers hang never delay other names.  They
    are started when they are needed.
    """

    def __init__(self, threads: int) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="resolver")

    async def resolve(self, host: str) -> list[Address]:
        """Return every IPv4 and IPv6 address of `host`; see `Resolver`."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError) as error:
            raise DnsFailed from error
        return _addresses([str(sockaddr[0]) for _, _, _, _, sockaddr in found])

    async def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class NamedServersResolver:
    """Asks only these name servers, for the name as it stands: no hosts file, no search domains.

    servers: addresses, with a port after a colon if it isn't 53.
    """

    def __init__(self, servers: Sequence[str]) -> None:
        self._resolver = aiodns.DNSResolver(
            nameservers=servers, lookups="b", flags=pycares.ARES_FLAG_NOSEARCH, timeout=2.0
        )

    async def resolve(self, host: str) -> list[Address]:
        """Return every IPv4 and IPv6 address of `host`; see `Resolver`."""
        try:
            found = await self._resolver.getaddrinfo(host, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except aiodns.error.DNSError as error:
            raise DnsFailed from error
        return _addresses([node.addr[0].decode("ascii") for node in found.nodes])

    async def close(self) -> None:
        """Cancel the queries that are under way."""
        await self._resolver.close()


class VettingResolver:
    """Keeps only those of another resolver's addresses that the policy allows."""

    def __init__(self, resolver: Resolver, allowed: Sequence[Network]) -> None:
        self._resolver = resolver
        self._allowed = tuple(allowed)

    async def resolve(self, host: str) -> list[Address]:
        """Return the allowed addresses of `host`.  Raises AddressNotAllowed when it has others only."""
        found = await self._resolver.resolve(host)
        allowed = [address for address in found if is_allowed(address, self._allowed)]
        if not allowed:
            raise AddressNotAllowed(NOT_ALLOWED)
        return allowed

    async def close(self) -> None:
        """Close the other resolver."""
        await self._resolver.close()


class CachingResolver:
    """Remembers another resolver's addresses for a while; requests for the same name share one query.

    seconds: how long; with 0, only concurrent queries are shared.  Failures aren't remembered.
    """

    def __init__(self, resolver: Resolver, seconds: float) -> None:
        self._resolver = resolver
        self._seconds = seconds
        self._known: OrderedDict[str, tuple[float, deque[Address]]] = OrderedDict()  # the oldest first
        self._asking: dict[str, asyncio.Task[list[Address]]] = {}

    async def resolve(self, host: str) -> list[Address]:
        """Return the addresses of `host`, beginning with a different one each time, so that all get their share."""
        now = asyncio.get_running_loop().time()
        if known := self._known.get(host):
            expires, addresses = known
            if now < expires:
                addresses.rotate(-1)
                return list(addresses)
            del self._known[host]
        task = self._asking.get(host)
        if task is None:
            task = self._asking[host] = asyncio.get_running_loop().create_task(self._ask(host))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # if no one waits for it any more
        # One request that is over must not take the addresses from the others.
        return list(await asyncio.shield(task))

    async def _ask(self, host: str) -> list[Address]:
        try:
            found = await self._resolver.resolve(host)
        finally:
            del self._asking[host]
        if self._seconds > 0:
            while len(self._known) >= MAX_CACHED_NAMES:
                self._known.popitem(last=False)
            self._known[host] = asyncio.get_running_loop().time() + self._seconds, deque(found)
        return found

    async def close(self) -> None:
        """Cancel the queries that are under way, and close the other resolver."""
        for task in list(self._asking.values()):
            task.cancel()
        await self._resolver.close()


def _addresses(texts: Sequence[str]) -> list[Address]:
    """Return the addresses, each once, in their order.  Raises DnsFailed when there is none."""
    if not texts:
        raise DnsFailed
    return [ipaddress.ip_address(text) for text in dict.fromkeys(texts)]


def make_resolver(egress: Egress) -> Resolver:
    """Return the resolver that `egress` asks for: the named servers' or the system's, vetted and cached."""
    named: Resolver = (
        NamedServersResolver(egress.dns_servers) if egress.dns_servers else SystemResolver(egress.connections)
    )
    return CachingResolver(VettingResolver(named, egress.allowed_networks), egress.dns_cache_ttl)
