"""How requests leave this system: the policy, the limits, and the proxy."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings

from webhooks.destinations.http.egress_policy import Network


@dataclass(frozen=True)
class Egress:
    """The limits and the policy of outgoing requests.  timeout and dns_cache_ttl in seconds; connections: in flight at
    once."""

    timeout: float
    body_bytes: int
    allowed_networks: tuple[Network, ...] = ()
    allowed_ports: frozenset[int] = frozenset()
    proxy_url: str = ""
    ca_file: str = ""
    dns_cache_ttl: float = 10.0
    dns_servers: tuple[str, ...] = ()
    connections: int = 512


def egress_from_settings() -> Egress:
    """Return the egress that the settings describe."""
    return Egress(
        timeout=settings.DELIVERY_TIMEOUT,
        body_bytes=settings.RESPONSE_BODY_BYTES,
        allowed_networks=settings.WEBHOOK_ALLOWED_SUBNETS,
        allowed_ports=settings.WEBHOOK_ALLOWED_PORTS,
        proxy_url=settings.WEBHOOK_PROXY_URL,
        ca_file=settings.WEBHOOK_CA_FILE,
        dns_cache_ttl=settings.DNS_CACHE_TTL,
        dns_servers=settings.WEBHOOK_DNS_SERVERS,
        connections=settings.MAX_CONCURRENT_DELIVERIES,
    )
