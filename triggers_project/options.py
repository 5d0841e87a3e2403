"""Every setting an operator can give through the environment: name, type, default, meaning.

`read_options` turns the environment into values and names every wrong one at once, so that a
process with a bad setting stops at its start and not at its first event.  docs/operations.md holds
the same list as a table; a test compares the two.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured


class OptionError(ValueError):
    """A setting's text can't be turned into a value; the message says what was expected."""


def _text(raw: str) -> str:
    return raw.strip()


def _boolean(raw: str) -> bool:
    lowered = raw.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise OptionError("expected true or false")


def _names(raw: str) -> list[str]:
    return [part.strip() for part in raw.split(",") if part.strip()]


def _host_names(raw: str) -> list[str]:
    names = _names(raw)
    if any(re.search(r"[/\s@]", name) for name in names):
        raise OptionError("expected host names such as triggers.example.com with commas between them")
    return names


def _origins(raw: str) -> list[str]:
    origins = _names(raw)
    if not all(re.fullmatch(r"https?://[^/\s]+", origin) for origin in origins):
        raise OptionError("expected origins such as https://triggers.example.com with commas between them")
    return origins


def _integer(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        try:
            value = int(raw)
        except ValueError:
            raise OptionError("expected a whole number") from None
        if not minimum <= value <= maximum:
            raise OptionError(f"expected a whole number from {minimum} to {maximum}")
        return value

    return parse


def _number(minimum: float, maximum: float) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            raise OptionError("expected a number") from None
        if not minimum <= value <= maximum:
            raise OptionError(f"expected a number from {minimum:g} to {maximum:g}")
        return value

    return parse


_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def _seconds(raw: str) -> float:
    match = _DURATION.match(raw.strip())
    if match is None:
        raise OptionError("expected a duration such as 500ms, 30s, 5m, 24h or 5d")
    return float(match[1]) * _SECONDS[match[2]]


def _duration(minimum: float, maximum: float) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        value = _seconds(raw)
        if not minimum <= value <= maximum:
            raise OptionError(f"expected a duration from {minimum:g}s to {maximum:g}s")
        return value

    return parse


def _schedule(raw: str) -> tuple[float, ...]:
    delays = tuple(_seconds(part) for part in raw.split(",") if part.strip())
    if not 1 <= len(delays) <= 50:
        raise OptionError("expected 1 to 50 durations with commas between them, such as 0s,5s,5m")
    return delays


def _networks(raw: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part) for part in _names(raw))
    except ValueError as error:
        raise OptionError(f"expected networks such as 10.0.0.0/8 with commas between them ({error})") from None


def _ports(raw: str) -> frozenset[int]:
    try:
        ports = frozenset(int(part) for part in _names(raw))
    except ValueError:
        raise OptionError("expected port numbers with commas between them") from None
    if any(not 1 <= port <= 65535 for port in ports):
        raise OptionError("expected port numbers from 1 to 65535")
    return ports


def _name_servers(raw: str) -> tuple[str, ...]:
    """Return each server as `address:port`, an IPv6 address in brackets."""
    servers = []
    for part in _names(raw):
        match = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+))(?::(?P<port>\d{1,5}))?", part)
        try:
            address = ipaddress.ip_address((match["six"] or match["four"]) if match else part)
        except ValueError:
            raise OptionError("expected addresses such as 10.0.0.2, 10.0.0.2:5353 or [fd00::2]:53") from None
        port = int(match["port"] or 53) if match else 53
        if not 1 <= port <= 65535:
            raise OptionError("expected port numbers from 1 to 65535")
        servers.append(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    return tuple(servers)


def _hosts_with_ports(raw: str) -> tuple[tuple[str, int], ...]:
    hosts = []
    for part in _names(raw):
        match = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:/@\[\]]+)):(?P<port>\d{1,5})", part)
        if match is None or not 1 <= int(match["port"]) <= 65535:
            raise OptionError("expected hosts with ports such as sentinel-1:26379 with commas between them")
        hosts.append((match["six"] or match["name"], int(match["port"])))
    return tuple(hosts)


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw.strip() not in choices:
            raise OptionError("expected one of " + ", ".join(choices))
        return raw.strip()

    return parse


def _path_segment(raw: str) -> str:
    value = raw.strip().strip("/")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise OptionError("expected one path segment of letters, digits, - and _")
    if value in {"api", "static"}:
        raise OptionError("expected a path segment other than api and static, which are taken")
    return value


def _url_prefix(raw: str) -> str:
    """Return the prefix with a slash before it and none after it, or an empty text."""
    value = raw.strip().strip("/")
    if value and not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", value):
        raise OptionError("expected a path such as /triggers, of letters, digits, -, _ and / between segments")
    if value.split("/")[0] in {"api", "static"}:
        raise OptionError("expected a path whose first segment is not api or static, which are taken")
    return f"/{value}" if value else ""


def _url_or_empty(*schemes: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        value = raw.strip()
        if value and not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise OptionError("expected a URL that starts with " + " or ".join(f"{s}://" for s in schemes))
        try:
            _ = urlsplit(value).port
        except ValueError:
            raise OptionError("expected a URL with a host and a port from 0 to 65535") from None
        return value

    return parse


def _readable_file(raw: str) -> str:
    value = raw.strip()
    if value and not os.access(value, os.R_OK):
        raise OptionError("expected the path of a file that can be read")
    return value


def _writable_file(raw: str) -> str:
    value = raw.strip()
    if value and (os.path.isdir(value) or not os.access(os.path.dirname(value) or ".", os.W_OK)):
        raise OptionError("expected the path of a file in a folder that can be written to")
    return value


_POSTGRES = _url_or_empty("postgres", "postgresql")
_REDIS = _url_or_empty("redis", "rediss", "unix")


@dataclass(frozen=True)
class Option:
    """One setting: its environment variable, its parser, its default as text, and what it means."""

    name: str
    parse: Callable[[str], Any]
    default: str
    help: str


OPTIONS: tuple[Option, ...] = (
    # What the process stands on
    Option(
        "ENVIRONMENT",
        _one_of("production", "development"),
        "production",
        "In `production`, nothing starts with DEBUG, a missing secret, or a missing encryption key.",
    ),
    Option(
        "DATABASE_URL",
        _POSTGRES,
        "",
        "PostgreSQL, such as `postgres://user:password@host:5432/triggers`. Required.",
    ),
    Option("REDIS_URL", _REDIS, "", "Redis or Valkey, such as `redis://host:6379/0`. Required."),
    Option(
        "REDIS_SENTINELS",
        _hosts_with_ports,
        "",
        "Sentinels that know the primary, e.g. `sentinel-1:26379,sentinel-2:26379`; the host in `REDIS_URL` is then the"
        " name they know it by, e.g. `redis://mymaster/0`.",
    ),
    Option("REDIS_SENTINEL_PASSWORD", _text, "", "The sentinels' own password, if they have one."),
    Option("SECRET_KEY", _text, "", "Django's secret key (sessions, CSRF). At least 32 characters. Required."),
    Option(
        "SECRETS_ENCRYPTION_KEYS",
        _names,
        "",
        "Fernet keys that encrypt webhook secrets and header values at rest, newest first. Required.",
    ),
    Option("DEBUG", _boolean, "false", "Django's debug pages. Never in production."),
    Option(
        "ALLOWED_HOSTS",
        _host_names,
        "localhost,127.0.0.1,[::1]",
        "Host names that requests may be sent to, separated by commas.",
    ),
    Option(
        "CSRF_TRUSTED_ORIGINS",
        _origins,
        "",
        "Origins that the admin is served from behind a proxy, such as `https://a.example`.",
    ),
    Option(
        "USE_HTTPS",
        _boolean,
        "true in production, else false",
        "Secure cookies, HSTS, and a redirect to https; `X-Forwarded-Proto` is trusted.",
    ),
    Option(
        "TRUSTED_PROXIES",
        _integer(0, 10),
        "0",
        "How many reverse proxies in front append to `X-Forwarded-For`; 0 means that the peer's address is the "
        "client's.",
    ),
    Option(
        "URL_PREFIX",
        _url_prefix,
        "",
        "Path under which everything is served, such as `/triggers`. Not `api`, `static`, or ADMIN_PATH.",
    ),
    Option("ADMIN_PATH", _path_segment, "admin", "Path segment of the Django admin; not `api` or `static`."),
    Option("LOG_LEVEL", _one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", "Level of the JSON log on stderr."),
    # Database connections
    Option(
        "DB_POOL_SIZE",
        _integer(1, 500),
        "max(4, WEB_THREADS)",
        "Connections that a process may keep open. The default is one per thread that talks to the database.",
    ),
    Option("DB_POOL_MAX_OVERFLOW", _integer(0, 500), "2", "Additional connections under load, beyond DB_POOL_SIZE."),
    Option("DB_POOL_TIMEOUT", _duration(0.1, 300), "30s", "Longest wait for a free connection."),
    Option("DB_POOL_MAX_LIFETIME", _duration(10, 86400), "1h", "Age at which a connection is replaced."),
    Option(
        "DB_PREPARED_STATEMENTS",
        _boolean,
        "true",
        "Use prepared statements. Set to `false` behind a pooler in transaction mode that doesn't support them.",
    ),
    Option(
        "WEB_THREADS",
        _integer(1, 200),
        "8",
        "Threads of each gunicorn worker process for what Django serves; accepting events doesn't use them.",
    ),
    # Ingestion
    Option(
        "MAX_EVENT_BYTES",
        _integer(1024, 16 * 1024 * 1024),
        "262144",
        "Largest body of `POST /api/events`; a larger one gets a 413.",
    ),
    Option("MAX_BATCH_BYTES", _integer(1024, 64 * 1024 * 1024), "5242880", "Largest body of `POST /api/events/batch`."),
    Option("MAX_BATCH_EVENTS", _integer(1, 10_000), "1000", "Most events in one batch."),
    Option("MAX_JSON_DEPTH", _integer(2, 500), "64", "Deepest nesting that a request's JSON may have."),
    Option("DEDUP_WINDOW", _duration(1, 90 * 86400), "24h", "How long a `dedup_id` is remembered."),
    Option(
        "MAX_QUEUE_LENGTH",
        _integer(1, 10_000_000),
        "100000",
        "Accepted but unprocessed events, of all organizations together, above which `POST /api/events` returns 503. "
        "Protects the disk.",
    ),
    Option(
        "MAX_WAITING_EVENTS",
        _integer(1, 10_000_000),
        "20000",
        "Accepted but unprocessed events of one organization above which its `POST /api/events` returns 429.",
    ),
    Option(
        "MAX_WAITING_DELIVERIES",
        _integer(1, 100_000_000),
        "1000000",
        "Pending and held deliveries of one organization above which its `POST /api/events` returns 429.",
    ),
    Option(
        "DEFAULT_EVENTS_PER_MINUTE",
        _integer(0, 100_000_000),
        "60000",
        "Rate limit of a new organization; 0 means no limit.",
    ),
    Option(
        "DEFAULT_RETENTION_DAYS", _integer(1, 3650), "30", "Days that a new organization's completed events are kept."
    ),
    Option(
        "PARTITION_DAYS",
        _integer(1, 3650),
        "7",
        "Days of events, with what belongs to them, in one partition. Partitions that exist keep their length.",
    ),
    Option(
        "AUTH_FAILURES_PER_MINUTE",
        _integer(1, 1_000_000),
        "60",
        "Failed authentications per client address and minute; more get a 429.",
    ),
    Option(
        "MAX_API_KEYS",
        _integer(1, 1_000_000),
        "1000",
        "Most API keys of one organization; revoked and expired ones don't count.",
    ),
    Option("MAX_SUBSCRIPTIONS", _integer(1, 1_000_000), "1000", "Most subscriptions of one organization."),
    # Workers
    Option("MAX_CONCURRENT_EVENTS", _integer(1, 10_000), "1000", "Events that a worker claims and fans out at a time."),
    Option(
        "MAX_CONCURRENT_DELIVERIES",
        _integer(1, 10_000),
        "512",
        "Deliveries that each of a worker's two processes has in flight.",
    ),
    Option(
        "MAX_CONNECTIONS_PER_HOST",
        _integer(1, 10_000),
        "256",
        "Requests that each of a worker's two processes has in flight to one host and port.",
    ),
    Option(
        "MAX_IN_FLIGHT_PER_SUBSCRIPTION",
        _integer(1, 10_000),
        "256",
        "Deliveries in flight to one subscription, over all workers; a subscription may override it.",
    ),
    Option(
        "INITIAL_CONCURRENCY_WINDOW",
        _integer(1, 1000),
        "4",
        "Deliveries in flight to a subscription that hasn't had a success yet; each success allows one more.",
    ),
    Option("EVENT_MAX_ATTEMPTS", _integer(1, 100), "5", "Failed fan-outs after which an event is in `error`."),
    Option("SWEEP_INTERVAL", _duration(0.05, 60), "1s", "How often a worker looks for work without a wake-up."),
    Option(
        "WORKER_SHUTDOWN_GRACE",
        _duration(0, 600),
        "35s",
        "After SIGTERM, how long requests in flight may finish before their leases are released.",
    ),
    Option(
        "WORKER_HEARTBEAT_FILE",
        _writable_file,
        "",
        "File that a worker touches while its threads run, for a health check; empty means none.",
    ),
    # Deliveries
    Option("DISABLE_WEBHOOK_DELIVERY", _boolean, "false", "Keep deliveries pending and don't send any."),
    Option(
        "DELIVERY_RETRY_SCHEDULE",
        _schedule,
        "0s,5s,5m,30m,2h,5h,10h,10h",
        "Delay before each attempt; the number of entries is the number of attempts.",
    ),
    Option(
        "DELIVERY_RETRY_JITTER",
        _number(0, 0.5),
        "0.1",
        "Share of each delay by which it varies at random, up or down.",
    ),
    Option(
        "DELIVERY_TIMEOUT",
        _duration(0.1, 300),
        "30s",
        "Total time of one attempt: resolving, connecting, sending, and reading.",
    ),
    Option(
        "LEASE_MARGIN",
        _duration(1, 3600),
        "30s",
        "How much longer than DELIVERY_TIMEOUT a worker's lease on a delivery lasts; when it ends, another worker may "
        "take the delivery.",
    ),
    Option("RETRY_AFTER_MAX", _duration(1, 86400), "1h", "Longest `Retry-After` of an endpoint that is honored."),
    Option(
        "RESPONSE_BODY_BYTES",
        _integer(0, 65536),
        "1024",
        "Bytes of an endpoint's response stored with an attempt.",
    ),
    Option(
        "DISABLE_AFTER_FAILING_FOR",
        _duration(1, 365 * 86400),
        "5d",
        "How long a subscription may fail without a success before it is disabled.",
    ),
    Option(
        "BREAKER_THRESHOLD",
        _integer(0, 10_000),
        "10",
        "Consecutive failures that open a subscription's circuit breaker; 0 means never.",
    ),
    Option(
        "BREAKER_BASE_DELAY",
        _duration(0.01, 3600),
        "5s",
        "Pause after a circuit breaker opens for the first time; doubles each time.",
    ),
    Option(
        "BREAKER_MAX_DELAY",
        _duration(0.01, 86400),
        "60s",
        "Longest pause of an open circuit breaker between probes.",
    ),
    Option("DNS_CACHE_TTL", _duration(0, 300), "10s", "How long a worker keeps a resolved address."),
    Option(
        "WEBHOOK_DNS_SERVERS",
        _name_servers,
        "",
        "Name servers for endpoints' host names, such as `10.0.0.2,[fd00::2]:53`; empty uses the system's resolver.",
    ),
    # Egress
    Option(
        "WEBHOOK_ALLOWED_SUBNETS",
        _networks,
        "",
        "Private networks that webhooks may be sent to, such as `10.20.0.0/16`.",
    ),
    Option(
        "WEBHOOK_ALLOWED_PORTS",
        _ports,
        "",
        "Ports that webhooks may be sent to; empty allows all but well-known ports of other protocols.",
    ),
    Option(
        "WEBHOOK_PROXY_URL",
        _url_or_empty("http", "https"),
        "",
        "Forward proxy for all deliveries; it then decides which addresses are reached.",
    ),
    Option(
        "WEBHOOK_CA_FILE",
        _readable_file,
        "",
        "PEM file of additional certificate authorities to trust for endpoints' certificates.",
    ),
    # Admin log-in
    Option(
        "LOGIN_FAILURE_LIMIT",
        _integer(1, 1000),
        "10",
        "Failed admin log-ins per address and user name before further ones are locked out.",
    ),
    Option("LOGIN_COOLOFF", _duration(1, 86400), "15m", "How long the lockout lasts."),
)


def _default_text(option: Option, environ: Mapping[str, str]) -> str:
    """Return the default as text; two of them follow from other variables."""
    if option.name == "USE_HTTPS":
        return "true" if environ.get("ENVIRONMENT", "production").strip() == "production" else "false"
    if option.name == "DB_POOL_SIZE":
        threads = environ.get("WEB_THREADS", "8").strip()
        return str(min(500, max(4, int(threads)))) if threads.isdecimal() else "8"
    return option.default


def read_options(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return every option's value by name.

    Raises ImproperlyConfigured with one line for each variable whose text is wrong.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for option in OPTIONS:
        raw = environ.get(option.name)
        try:
            values[option.name] = option.parse(raw if raw is not None else _default_text(option, environ))
        except OptionError as error:
            # The value itself is not shown: it may be a secret.
            problems.append(f"{option.name} is wrong: {error}.")
            values[option.name] = None
    if problems:
        raise ImproperlyConfigured("\n".join(problems))
    problems = _contradictions(values)
    if problems:
        raise ImproperlyConfigured("\n".join(problems))
    return values


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    """Return one line for each required setting that is missing or doesn't go with another."""
    problems = []
    for name, example in (
        ("DATABASE_URL", "postgres://user:password@host:5432/triggers"),
        ("REDIS_URL", "redis://host:6379/0"),
    ):
        if not values[name]:
            problems.append(f"{name} is not set. Give one, such as {example}, or start everything with `make run`.")
    if len(values["SECRET_KEY"]) < 32 or values["SECRET_KEY"].startswith("django-insecure"):
        problems.append("SECRET_KEY is not set or too short: give at least 32 random characters.")
    if not values["SECRETS_ENCRYPTION_KEYS"]:
        problems.append("SECRETS_ENCRYPTION_KEYS is not set: give at least one Fernet key.")
    else:
        from cryptography.fernet import Fernet

        for position, key in enumerate(values["SECRETS_ENCRYPTION_KEYS"], start=1):
            try:
                Fernet(key)
            except ValueError:
                problems.append(f"SECRETS_ENCRYPTION_KEYS is wrong: key {position} is not 32 bytes in url-safe base64.")
    if values["URL_PREFIX"].split("/")[1:2] == [values["ADMIN_PATH"]]:
        problems.append("URL_PREFIX is wrong: its first segment is ADMIN_PATH, so the two can't be told apart.")
    if values["REDIS_SENTINELS"] and not re.match(r"rediss?://([^/]*@)?[^/@:]+(/|\?|$)", values["REDIS_URL"]):
        problems.append(
            "REDIS_URL is wrong: with REDIS_SENTINELS, its host is the name that the sentinels know the primary by, "
            "without a port, such as redis://mymaster/0."
        )
    if values["ENVIRONMENT"] == "production":
        problems += _unsafe(values)
    return problems


def _unsafe(values: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting that is fine on a desk and not in production."""
    problems = []
    if values["DEBUG"]:
        problems.append("DEBUG must be false when ENVIRONMENT is production.")
    secret = values["SECRET_KEY"]
    if secret.startswith("only-for-") or (secret and len(set(secret)) < 8):
        problems.append("SECRET_KEY is public or can be guessed: give at least 32 random characters.")
    for position, key in enumerate(values["SECRETS_ENCRYPTION_KEYS"], start=1):
        if len(set(key)) < 8:
            problems.append(f"SECRETS_ENCRYPTION_KEYS is wrong: key {position} is not random.")
    return problems
