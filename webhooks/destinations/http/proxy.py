"""Through the operator's egress proxy: CONNECT for https, the whole URL for http (RFC 9110 §9.3.6, RFC 9112 §3.2.2).

The proxy is the operator's own, so its address isn't checked; it decides which addresses can be reached.
"""

from __future__ import annotations

import asyncio
import base64
import ssl

import httpx

from webhooks.destinations.exchange import Exchange
from webhooks.destinations.http.connect import open_socket, start, tls_name
from webhooks.destinations.http.connection import Connection, peer
from webhooks.destinations.http.egress_policy import literal_address
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.http.errors import ConnectFailed, ConnectionLost, InvalidResponse, ProxyFailed
from webhooks.destinations.http.resolver import CachingResolver, SystemResolver
from webhooks.destinations.http.response_reader import ResponseReader
from webhooks.destinations.http.target import Target


class ProxyRoute:
    """Connects through the proxy of `egress`; see `connect.Route`."""

    def __init__(self, egress: Egress, context: ssl.SSLContext) -> None:
        proxy = httpx.Proxy(egress.proxy_url)
        self._context = context
        self._is_tls = proxy.url.scheme == "https"
        self._host = proxy.url.host
        self._port = proxy.url.port or (443 if self._is_tls else 80)
        self._credentials = ""
        if proxy.raw_auth is not None:
            token = base64.b64encode(b"%b:%b" % proxy.raw_auth).decode()
            self._credentials = f"Proxy-Authorization: Basic {token}\r\n"
        self._resolver = CachingResolver(SystemResolver(egress.connections), egress.dns_cache_ttl)

    async def connect(self, target: Target, exchange: Exchange, context: ssl.SSLContext) -> Connection:
        """Connect to the proxy, and through it to a TLS target.  The times up to the target's TLS are the proxy's."""
        exchange.via_proxy = True
        try:
            connection = await self._connect_to_proxy(exchange)
        except OSError as error:  # ssl.SSLError and DnsFailed are, too; they would name the proxy
            raise ProxyFailed from error
        if target.is_tls:
            try:
                await self._open_tunnel(connection, target, exchange, context)
            except BaseException:
                connection.abort()
                raise
        return connection

    def request_line(self, target: Target) -> str:
        """Return the request line in absolute form for http; the endpoint behind a tunnel gets the usual one."""
        if target.is_tls:
            return f"POST {target.path} HTTP/1.1\r\n"
        return f"POST http://{target.authority}{target.path} HTTP/1.1\r\n{self._credentials}"

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()

    async def _connect_to_proxy(self, exchange: Exchange) -> Connection:
        literal = literal_address(self._host)
        if literal is not None:
            addresses = [literal]
        else:
            with exchange.timed("dns_us"):
                addresses = await self._resolver.resolve(self._host)
        with exchange.timed("connect_us"):
            sock = await open_socket(addresses, self._port, None)
            exchange.remote_address = peer(sock)
            return await start(sock, self._context if self._is_tls else None, self._host)

    async def _open_tunnel(
        self, connection: Connection, target: Target, exchange: Exchange, context: ssl.SSLContext
    ) -> None:
        """Let the proxy connect to the target, and do the TLS handshake with the target."""
        host = f"[{target.host}]" if ":" in target.host else target.host
        head = f"CONNECT {host}:{target.port} HTTP/1.1\r\nHost: {host}:{target.port}\r\n{self._credentials}\r\n"
        reader = ResponseReader(0, to_connect=True)
        try:
            await connection.request(head.encode(), reader)
        except (ConnectionLost, InvalidResponse) as error:
            raise ProxyFailed from error
        is_open = reader.status is not None and 200 <= reader.status <= 299
        if not is_open or not connection.finish():
            raise ProxyFailed
        try:
            with exchange.timed("tls_us"):
                transport = await asyncio.get_running_loop().start_tls(
                    connection.transport, connection, context, server_hostname=tls_name(target.host)
                )
        except ssl.SSLError:
            raise
        except OSError as error:
            raise ConnectFailed from error
        if transport is None:
            raise ConnectFailed
        connection.transport = transport
