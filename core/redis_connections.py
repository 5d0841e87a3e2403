"""How every connection to Redis is made: to the server that REDIS_URL names, or to the primary that Sentinel names.

A server that a failover turned into a replica stays up and refuses writes.  Connections to it must end: the next one
asks Sentinel again, or resolves the name in REDIS_URL again.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django_redis import pool as django_redis_pool
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError
from redis.retry import Retry
from redis.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

# Sentinels are asked one after the other until one responds.
SENTINEL_SECONDS = 0.25


class _ToPrimary:
    """A connection that ends when its server turns out to be a replica.

    Its user sees a connection error, as when the server goes away: redis-py and RQ connect again.
    """

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as error:
            # UNBLOCKED: the server became a replica while one of our commands was waiting.
            if isinstance(error, ReadOnlyError | MasterDownError) or str(error).startswith("UNBLOCKED"):
                self.disconnect()  # type: ignore[attr-defined]
                raise RedisConnectionError(f"the server is no longer the primary: {error}") from error
            raise


class TCPConnection(_ToPrimary, Connection):
    pass


class TLSConnection(_ToPrimary, SSLConnection):
    pass


class UnixConnection(_ToPrimary, UnixDomainSocketConnection):
    pass


class SentinelTCPConnection(_ToPrimary, SentinelManagedConnection):
    pass


class SentinelTLSConnection(_ToPrimary, SentinelManagedSSLConnection):
    pass


def sentinel_options(url: str) -> dict[str, Any]:
    """Return how the sentinels are connected to; with `rediss://` over TLS, with the URL's ssl_ options."""
    options: dict[str, Any] = {"socket_connect_timeout": SENTINEL_SECONDS, "socket_timeout": SENTINEL_SECONDS}
    if url.startswith("rediss:"):
        options |= {name: value for name, value in parse_url(url).items() if name.startswith("ssl_")}
        options["ssl"] = True
    if settings.REDIS_SENTINEL_PASSWORD:
        options["password"] = settings.REDIS_SENTINEL_PASSWORD
    return options


def _sentinel(url: str) -> Sentinel:
    """Return what asks the sentinels."""
    options = {**sentinel_options(url), "retry": Retry(NoBackoff(), 0)}
    return Sentinel(settings.REDIS_SENTINELS, sentinel_kwargs=options)


# For all threads, each of which has its own cache object and factory.
_pools: dict[str, ConnectionPool] = {}


class ConnectionFactory(django_redis_pool.ConnectionFactory):  # type: ignore[misc]
    """django-redis's factory: a pool for each cache, although both have the same URL, with our connections."""

    def get_or_create_connection_pool(self, params: dict[str, Any]) -> ConnectionPool:
        key = f"{self.options.get('POOL', '')} {params['url']}"
        if key not in _pools:
            _pools[key] = self.get_connection_pool(params)
        return _pools[key]

    def get_connection_pool(self, params: dict[str, Any]) -> ConnectionPool:
        url = params["url"]
        scheme = url.partition(":")[0]
        options = {**params, **self.pool_cls_kwargs}
        if not settings.REDIS_SENTINELS:
            kind = {"rediss": TLSConnection, "unix": UnixConnection}.get(scheme, TCPConnection)
            return ConnectionPool.from_url(**options, connection_class=kind)
        return SentinelConnectionPool.from_url(
            **options,
            connection_class=SentinelTLSConnection if scheme == "rediss" else SentinelTCPConnection,
            service_name=parse_url(url)["host"],
            sentinel_manager=_sentinel(url),
        )
