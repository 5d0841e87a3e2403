"""The kinds of values that a setting can have: what its text may be, and what it becomes."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Hint(ValueError):
    """Raised by a kind's `parse` when the text is wrong and its message helps to see why, without being a secret."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """expected: what the text has to be; said when a value is wrong, and in the documentation.

    parse: returns the value of a text.  Raises ValueError, whose message isn't shown unless it is a Hint.
    """

    expected: str
    parse: Callable[[str], T]


def _split(raw: str) -> list[str]:
    return [part.strip() for part in raw.split(",") if part.strip()]


def _all_match(pattern: str) -> Callable[[str], list[str]]:
    def parse(raw: str) -> list[str]:
        parts = _split(raw)
        if not all(re.fullmatch(pattern, part) for part in parts):
            raise ValueError
        return parts

    return parse


def _boolean(raw: str) -> bool:
    lowered = raw.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError


text = Kind("text", str.strip)
boolean = Kind("true or false", _boolean)
host_names = Kind("host names such as triggers.example.com, separated by commas", _all_match(r"[^/\s@]+"))
origins = Kind("origins such as https://triggers.example.com, separated by commas", _all_match(r"https?://[^/\s]+"))
fernet_keys = Kind("Fernet keys, separated by commas", _split)


def one_of(*choices: str) -> Kind[str]:
    """One of some words."""

    def parse(raw: str) -> str:
        if raw.strip() not in choices:
            raise ValueError
        return raw.strip()

    return Kind("one of " + ", ".join(choices), parse)


def _color(raw: str) -> str:
    value = raw.strip().lower()
    if not re.fullmatch(r"#[0-9a-f]{6}", value):
        raise ValueError
    return value


color = Kind("a color such as #1f5fbf", _color)


_EMAIL = r"[^@\s<>,;:\"()]+@[^@\s<>,;:\"()]+"


def _email_address(raw: str) -> str:
    if not re.fullmatch(_EMAIL, raw.strip()):
        raise ValueError
    return raw.strip()


def _signing_secret(raw: str) -> str:
    value = raw.strip()
    if value and not (value.startswith("whsec_") and 24 <= len(base64.b64decode(value[6:], validate=True)) <= 64):
        raise ValueError
    return value


email_address = Kind("an e-mail address such as ops@example.com", _email_address)
email_addresses = Kind("e-mail addresses such as ops@example.com, separated by commas", _all_match(_EMAIL))
signing_secret = Kind("whsec_ and the base64 of 24 to 64 bytes", _signing_secret)


# --- numbers --------------------------------------------------------------------------------------


def integer(minimum: int, maximum: int, unit: str = "") -> Kind[int]:
    """A whole number in a range.  unit: what it counts, unless the setting's meaning says that."""

    def parse(raw: str) -> int:
        value = int(raw)
        if not minimum <= value <= maximum:
            raise ValueError
        return value

    of_what = f" of {unit}" if unit else ""
    return Kind(f"a whole number{of_what} from {minimum} to {maximum}", parse)


def number(minimum: float, maximum: float) -> Kind[float]:
    """A number in a range."""

    def parse(raw: str) -> float:
        value = float(raw)
        if not minimum <= value <= maximum:
            raise ValueError
        return value

    return Kind(f"a number from {minimum:g} to {maximum:g}", parse)


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, None: 1.0}


def _seconds(raw: str) -> float:
    match = _DURATION.fullmatch(raw.strip())
    if match is None:
        raise ValueError
    return float(match[1]) * _SECONDS[match[2]]


def _as_text(seconds: float) -> str:
    """Return a duration in the largest unit in which it is a whole number, such as 5m."""
    milliseconds = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(milliseconds, round(_SECONDS[unit] * 1000))
        if not rest:
            return f"{count}{unit}" if count else "0s"
    return f"{milliseconds}ms"


def duration(minimum: float, maximum: float) -> Kind[float]:
    """A time in a range of seconds, such as 30s or 24h; a number without a unit is in seconds."""

    def parse(raw: str) -> float:
        value = _seconds(raw)
        if not minimum <= value <= maximum:
            raise ValueError
        return value

    return Kind(f"a duration such as 30s, from {_as_text(minimum)} to {_as_text(maximum)}", parse)


def _schedule(raw: str) -> tuple[float, ...]:
    delays = tuple(_seconds(part) for part in _split(raw))
    if not 1 <= len(delays) <= 50:
        raise ValueError
    return delays


schedule = Kind("1 to 50 durations such as 0s,5s,5m, separated by commas", _schedule)


# --- paths and files ------------------------------------------------------------------------------


def _path_segment(raw: str) -> str:
    value = raw.strip().strip("/")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", value) or value in {"api", "static", "portal"}:
        raise ValueError
    return value


def _url_prefix(raw: str) -> str:
    """Return the prefix with a slash before it and none after it, or an empty text."""
    value = raw.strip().strip("/")
    if value and not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", value):
        raise ValueError
    if value.split("/")[0] in {"api", "static", "portal"}:
        raise ValueError
    return f"/{value}" if value else ""


def _readable_file(raw: str) -> str:
    value = raw.strip()
    if value and not os.access(value, os.R_OK):
        raise ValueError
    return value


def _writable_file(raw: str) -> str:
    value = raw.strip()
    if value and (os.path.isdir(value) or not os.access(os.path.dirname(value) or ".", os.W_OK)):
        raise ValueError
    return value


def _writable_folder(raw: str) -> str:
    """Return the folder, which may have to be made yet."""
    value = raw.strip().rstrip("/")
    if value and not (
        os.path.isabs(value) and os.access(value if os.path.isdir(value) else os.path.dirname(value), os.W_OK)
    ):
        raise ValueError
    return value


path_segment = Kind("a path segment of letters, digits, -, and _ that isn't api, static, or portal", _path_segment)
url_prefix = Kind(
    "a path such as /triggers, of letters, digits, -, _, and slashes, that doesn't start with api, static, or portal",
    _url_prefix,
)
readable_file = Kind("the path of a file that can be read", _readable_file)
writable_folder = Kind("the absolute path of a folder that can be written to, or made", _writable_folder)
writable_file = Kind("the path of a file in a folder that can be written to", _writable_file)


# --- addresses ------------------------------------------------------------------------------------


def url(*schemes: str) -> Kind[str]:
    """A URL with one of some schemes, or an empty text."""

    def parse(raw: str) -> str:
        value = raw.strip()
        if value and not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError
        _ = urlsplit(value).port  # raises ValueError for a host or a port that can't be one
        return value

    names = " or ".join(f"{scheme}://" for scheme in schemes)
    return Kind(f"a URL that starts with {names}, with a port up to 65535 if it has one", parse)


def _public_origin(raw: str) -> str:
    value = raw.strip().rstrip("/")
    if value and not re.fullmatch(r"https?://[^/\s?#@\"';,]+", value):
        raise ValueError
    _ = urlsplit(value).port
    return value


def _frame_origins(raw: str) -> list[str]:
    """Return origins that can stand in a Content-Security-Policy: nothing in them ends a directive."""
    parts = _split(raw)
    if not all(re.fullmatch(r"https?://(\*\.)?[A-Za-z0-9.\[\]:-]+", part) for part in parts):
        raise ValueError
    return parts


def _image_url(raw: str) -> str:
    value = raw.strip()
    if value and not re.fullmatch(r"https?://[A-Za-z0-9.:-]+/[^\s\"'<>;,]*", value):
        raise ValueError
    _ = urlsplit(value).port
    return value


public_origin = Kind("an origin such as https://hooks.example.com", _public_origin)
frame_origins = Kind("origins such as https://app.example.com, separated by commas", _frame_origins)
image_url = Kind("the URL of an image such as https://example.com/logo.svg", _image_url)


def _port(raw: str) -> int:
    port = int(raw)
    if not 1 <= port <= 65535:
        raise ValueError
    return port


def _networks(raw: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part) for part in _split(raw))
    except ValueError as error:
        raise Hint(str(error)) from None


def _name_servers(raw: str) -> tuple[str, ...]:
    """Return each server as `address:port`, an IPv6 address in brackets."""
    servers = []
    for part in _split(raw):
        match = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+))(?::(?P<port>\d{1,5}))?", part)
        address = ipaddress.ip_address((match["six"] or match["four"]) if match else part)
        port = _port((match and match["port"]) or "53")
        servers.append(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    return tuple(servers)


def _hosts_with_ports(raw: str) -> tuple[tuple[str, int], ...]:
    hosts = []
    for part in _split(raw):
        match = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:/@\[\]]+)):(?P<port>\d{1,5})", part)
        if match is None:
            raise ValueError
        hosts.append((match["six"] or match["name"], _port(match["port"])))
    return tuple(hosts)


def _address_with_port(raw: str) -> tuple[str, int] | None:
    if not raw.strip():
        return None
    ((host, port),) = _hosts_with_ports(raw)
    return host, port


address_with_port = Kind("an address with a port such as 127.0.0.1:9464", _address_with_port)
ports = Kind(
    "port numbers from 1 to 65535, separated by commas", lambda raw: frozenset(_port(part) for part in _split(raw))
)
networks = Kind("networks such as 10.0.0.0/8, separated by commas", _networks)
name_servers = Kind(
    "addresses such as 10.0.0.2, 10.0.0.2:5353, or [fd00::2]:53, separated by commas, with ports up to 65535",
    _name_servers,
)
hosts_with_ports = Kind("hosts with ports such as sentinel-1:26379, separated by commas", _hosts_with_ports)
