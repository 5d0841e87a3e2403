"""What a client is set up with, and what both clients do with it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from triggers_client.calls import Attempts, Call, RetryPolicy

T = TypeVar("T")

USER_AGENT = "triggers-client-python/1.0"
DEFAULT_URL = "http://localhost:8000"


class ConfigurationError(ValueError):
    """A client can't be made of what is given."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """base_url: without `/api`.  timeout: seconds for connecting, and between two parts of a response."""

    base_url: str
    api_key: str = field(repr=False)
    timeout: float = 30.0
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    @classmethod
    def of(cls, api_key: str | None, base_url: str | None, timeout: float, max_retries: int) -> Configuration:
        """Return what is given, or what TRIGGERS_API_KEY and TRIGGERS_URL say.  Raises ConfigurationError."""
        key = api_key or os.environ.get("TRIGGERS_API_KEY", "")
        url = base_url or os.environ.get("TRIGGERS_URL", "") or DEFAULT_URL
        if not key:
            raise ConfigurationError("An API key is needed: pass api_key, or set TRIGGERS_API_KEY.")
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigurationError(
                "An API key is ASCII text without spaces, such as trk_…. This one has other characters."
            )
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"A base URL begins with http:// or https://, which {url!r} doesn't.")
        return cls(url.rstrip("/"), key, timeout, RetryPolicy(retries=max_retries))

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of every request."""
        return {"X-API-Key": self.api_key, "User-Agent": USER_AGENT, "Accept": "application/json"}

    @property
    def http_timeout(self) -> httpx.Timeout:
        """Return the timeout of connections."""
        return httpx.Timeout(self.timeout)

    def attempts(self, call: Call[T]) -> Attempts[T]:
        """Return the attempts of a call."""
        return Attempts(call, self.policy, self.base_url, self.timeout)
