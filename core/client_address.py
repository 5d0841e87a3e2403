"""Which address a request comes from, for limits, lock-outs, and the audit log."""

from __future__ import annotations

import ipaddress
import re

from django.conf import settings
from django.http import HttpRequest

from core.front_door.http import Request

_WITH_PORT = re.compile(r"\[(?P<six>[^\[\]]*)\](?::\d{1,5})?|(?P<four>\d{1,3}(?:\.\d{1,3}){3}):\d{1,5}")


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address in `203.0.113.9`, `203.0.113.9:40001`, `2001:db8::1` or `[2001:db8::1]:443`, else None."""
    match = _WITH_PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address((match["six"] or match["four"] or "") if match else text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        return ipaddress.IPv6Address(int(address))  # without the zone (`%eth0`) of a link-local one
    return address


def client_address(request: HttpRequest | Request) -> str:
    """Return the client's address, without a port and in its normal form; empty if it is unknown.

    The rule: start at the peer of the connection. For each of TRUSTED_PROXIES proxies, from the nearest outward, step
    to the address that this proxy appended to `X-Forwarded-For`, which is its own peer. Stop early where an entry is
    missing or isn't an address: then the last address that a trusted hop reported is the client's. Entries further out
    are the client's own claims and are never looked at, nor is the header as a whole when TRUSTED_PROXIES is 0. Several
    `X-Forwarded-For` headers are one list, in their order. An entry may have a port, which is ignored: a client has
    many.
    """
    address = _parse(str(request.META.get("REMOTE_ADDR", "")).strip())
    if settings.TRUSTED_PROXIES:
        entries = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
        for entry in entries[: -settings.TRUSTED_PROXIES - 1 : -1]:
            reported = _parse(entry.strip())
            if reported is None:
                break
            address = reported
    return "" if address is None else str(address)


def client_network(address: str) -> str:
    """Return what one client's attempts are counted by: an IPv4 address, or the /64 that an IPv6 client has to itself.

    address: as `client_address` returns it.  A /64 is named by its first address.
    """
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Address(int(parsed) >> 64 << 64))
    return address


def lockout_address(request: HttpRequest) -> str | None:
    """Return what django-axes counts failed log-ins by (AXES_CLIENT_IP_CALLABLE), None if the address isn't known."""
    return client_network(client_address(request)) or None
