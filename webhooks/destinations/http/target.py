"""The target of a URL, and how a request names it: what was stored is what is sent."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a URL that `check_url` let through.

    host: lower-case, an IPv6 literal without its brackets.  authority: the host, and the port unless it is the
    scheme's own, as the Host header has it.  path: path and query, byte for byte.  origin: names the connections that
    may be shared.
    """

    is_tls: bool
    host: str
    port: int
    authority: str
    path: str
    origin: str


def parse_target(url: str) -> Target:
    """Return the target of a URL that passed `check_url`."""
    parts = urlsplit(url)
    is_tls = parts.scheme.lower() == "https"
    default = 443 if is_tls else 80
    host = (parts.hostname or "").lower()
    port = parts.port or default
    named = f"[{host}]" if ":" in host else host
    # `urlsplit` can't tell `/x?` from `/x`, so the rest is taken from the text.
    start = url.index("//") + 2 + len(parts.netloc)
    path = url[start:].removesuffix("#")
    return Target(
        is_tls=is_tls,
        host=host,
        port=port,
        authority=named if port == default else f"{named}:{port}",
        path=path if path.startswith("/") else f"/{path}",
        origin=f"{'https' if is_tls else 'http'}://{named}:{port}",
    )
