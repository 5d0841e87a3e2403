"""Secrets in a URL's query, such as `?token=…`: recognized by their names, and masked where an exchange is shown.

People who may read deliveries may not be allowed to read subscriptions, whose URLs contain them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

# How the name of a parameter ends that holds a secret: `access_token`, `apiKey`, `X-Amz-Signature`.
_SECRET_NAME = re.compile(
    r"(token|secret|pass|password|passwd|passphrase|pwd|key|sig|signature|hmac|code|jwt|auth|authorization|credentials?)$",
    re.IGNORECASE,
)


def mask_query(url: str, mask: Callable[[str], str]) -> str:
    """Return a URL byte for byte, but with `mask(name)` in place of each value in its query that is secret."""
    path, mark, query = url.partition("?")
    if not mark:
        return url
    parts = re.split(r"([&;])", query)
    return path + mark + "".join(_mask(part, mask) for part in parts)


def secret_parameters(url: str) -> list[str]:
    """Return the names of the parameters that `mask_query` masks."""
    names: list[str] = []

    def note(name: str) -> str:
        names.append(name)
        return ""

    mask_query(url, note)
    return names


def _mask(part: str, mask: Callable[[str], str]) -> str:
    name, equals, value = part.partition("=")
    return f"{name}={mask(name)}" if equals and value and _SECRET_NAME.search(unquote(name)) else part
