"""Which server, and with which key: TRIGGERS_URL and TRIGGERS_API_KEY, or what `triggers login` has stored."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from triggers_client.configuration import DEFAULT_URL

# Somebody is waiting: what a client does at most once more, they can do again themselves.
RETRIES = 1


class NotLoggedInError(Exception):
    """There is no key."""


@dataclass(frozen=True)
class Login:
    """A server's base URL, and a key of it."""

    url: str
    api_key: str = field(repr=False)


def config_file() -> Path:
    """Return where a login is stored."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "triggers" / "config.json"


def stored() -> dict[str, str]:
    """Return what is stored; nothing if there is no such file, or it can't be read."""
    try:
        found = json.loads(config_file().read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def default_url() -> str:
    """Return the base URL that is in effect."""
    return os.environ.get("TRIGGERS_URL") or stored().get("url") or DEFAULT_URL


def current() -> Login:
    """Return what is in effect.  Raises NotLoggedInError.

    The stored key is only sent to the server that it was stored for.
    """
    url, known = default_url().rstrip("/"), stored()
    key = os.environ.get("TRIGGERS_API_KEY") or (known.get("api_key") if known.get("url") == url else None)
    if not key:
        raise NotLoggedInError(f"There is no API key for {url}. Run `triggers login`, or set TRIGGERS_API_KEY.")
    return Login(url, key)


def store(login: Login) -> Path:
    """Store a login in a file that only its owner can read."""
    path = config_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": login.url, "api_key": login.api_key}, file)
    temporary.replace(path)
    return path
