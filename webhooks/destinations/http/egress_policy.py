"""Which addresses, ports and URLs a webhook may go to: the policy against server-side request forgery.

Only global unicast addresses are allowed, unless the operator allows a network.  Python's `ipaddress.is_global` is not
enough: it lets multicast, translated and tunneled ranges through that lead back inside.  The list follows the IANA
special-purpose registries (RFC 6890).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

import idna

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_CHARACTERS = 2048
NOT_ALLOWED = "address not allowed: it must be a public one, or one that the operator has allowed"

# Written out, because the result of `is_global` depends on the version of Python.  The chart's NetworkPolicy refuses
# the same ranges (deploy/helm/triggers-api/values.yaml).
REFUSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this network"; Linux takes 0.0.0.0 for itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform address, public in form only
        "169.254.0.0/16",  # link-local, where the metadata services are
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relay anycast
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
        "2001::/23",  # IETF protocol assignments, Teredo (2001::/32) among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)

# All that IANA has given out as global unicast (RFC 4291 §2.4).  Outside are loopback, IPv4-compatible
# `::/96`, NAT64 `64:ff9b::/96` and `64:ff9b:1::/48`, `5f00::/16`, unique local `fc00::/7` (with EC2's
# `fd00:ec2::254`), link-local, site-local `fec0::/10` and multicast.
IPV6_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

# The Fetch standard's list of ports that speak other protocols, and the usual databases.
REFUSED_PORTS = frozenset(
    [1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110,
     111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532,
     540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1433, 1521, 1719, 1720, 1723, 2049, 2375, 2376, 2379,
     3306, 3659, 4045, 4190, 5060, 5061, 5432, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080, 11211,
     27017]
)  # fmt: skip

# Labels of letters, digits, - and _ (which some use in practice), none with a - at an end; one dot may follow.
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")


class AddressNotAllowed(OSError):
    """The policy refuses the address that a connection would go to."""


class UrlError(ValueError):
    """A webhook URL can't be used; the message says why, in words for its owner."""


def is_allowed(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Return whether a webhook may connect to `address`.  allowed: the operator's own networks."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    if any(address.version == network.version and address in network for network in allowed):
        return True
    if any(address.version == network.version and address in network for network in REFUSED):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in IPV6_GLOBAL_UNICAST:
        return False
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_link_local
        or address.is_loopback
    )


def is_port_allowed(port: int, allowed: frozenset[int] = frozenset()) -> bool:
    """Return whether a webhook may go to `port`.  allowed: the operator's list; empty for the default."""
    return port in allowed if allowed else port != 0 and port not in REFUSED_PORTS


def literal_address(host: str) -> Address | None:
    """Return the address that `host` spells, in any form that a resolver would take, or None for a name.

    `127.1`, `0x7f.1`, `017700000001` and `2130706433` are all 127.0.0.1 to the C library.
    """
    text = host.strip("[]").rstrip(".")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    if re.fullmatch(r"[0-9a-fA-FxX.]+", text):
        try:
            return ipaddress.IPv4Address(socket.inet_aton(text))
        except (OSError, ValueError):
            return None
    return None


def normalize_url(text: str) -> str:
    """Return a URL as a person pasted it in the form that is stored, checked, and sent.

    Blanks around it go, a host name in Unicode becomes its ASCII form as browsers make it (UTS #46, Punycode), and
    other non-ASCII characters are percent-encoded as UTF-8.  Whatever is ASCII stays byte for byte: a signed URL must
    not change.  Raises UrlError when a host name or character has no such form; `check_url` judges the rest.
    """
    url = text.strip()
    if url.isascii():
        return url
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme.isascii():
        raise UrlError("is not a URL")
    end = re.search(r"[/?#\\]", rest)
    authority, path = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    if not authority.isascii():
        host, colon, port = authority.partition(":")
        authority = _ascii_host(host) + colon + port
    try:
        return f"{scheme}://{authority}" + re.sub(r"[^\x00-\x7f]+", lambda found: quote(found[0], safe=""), path)
    except UnicodeEncodeError:
        raise UrlError("holds a character that UTF-8 can't encode") from None


def _ascii_host(host: str) -> str:
    """Return a host name in Unicode as the name that is looked up.  Raises UrlError."""
    try:
        labels = idna.uts46_remap(host, std3_rules=False).split(".")
        # Labels in ASCII may hold what IDNA doesn't allow and DNS does: an underscore.
        ascii_host = ".".join(label if label.isascii() else idna.alabel(label).decode() for label in labels)
    except (idna.IDNAError, UnicodeError):
        ascii_host = ""
    # Full-width `/`, `@`, or `:` would be mapped, too, and end the host where a reader sees no end.
    if not _HOST.fullmatch(ascii_host):
        raise UrlError("must name a valid host")
    return ascii_host


def check_url(url: str, allowed_networks: Sequence[Network] = (), allowed_ports: frozenset[int] = frozenset()) -> None:
    """Raise UrlError when `url` can't be a webhook's.

    Names are not resolved here: what a name means is decided at every connection.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise UrlError(f"must have at most {MAX_URL_CHARACTERS} characters")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise UrlError("must not contain spaces, backslashes, or control characters: percent-encode them")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlError("is not a URL") from None
    if parts.scheme.lower() not in {"http", "https"}:
        raise UrlError("must start with http:// or https://")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise UrlError("must not hold a user name or password: give them in `auth`")
    host = parts.hostname or ""
    if not host:
        raise UrlError("must name a host")
    if parts.fragment:
        raise UrlError("must not have a fragment")
    if port is None:
        port = 443 if parts.scheme.lower() == "https" else 80
    if not is_port_allowed(port, allowed_ports):
        raise UrlError(f"port {port} is not allowed")
    address = literal_address(host)
    if address is not None:
        if not is_allowed(address, allowed_networks):
            raise UrlError(NOT_ALLOWED)
        if address.version == 4 and host != str(address):
            raise UrlError(f"write the address as {address}")
    elif not _HOST.fullmatch(host) or len(host) > 253 or not _is_decodable(host):
        raise UrlError("must name a valid host")


def _is_decodable(host: str) -> bool:
    """Return whether every label that claims to be an encoded Unicode one (`xn--…`) is."""
    try:
        for label in host.split("."):
            if label.startswith("xn--"):
                idna.decode(label)
    except idna.IDNAError:
        return False
    return True
