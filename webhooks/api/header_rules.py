"""Which headers a subscription may name: valid ones, and none that we set ourselves."""

from __future__ import annotations

import re

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")  # RFC 9110 §5.1: token
HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?|")  # RFC 9110 §5.5, ASCII only
# What each request has anyway, and what belongs to a connection or a proxy (RFC 9110 §7.6.1).
OURS = {
    "host", "content-type", "content-length", "content-encoding", "transfer-encoding", "connection", "keep-alive",
    "te", "trailer", "upgrade", "expect", "user-agent", "cookie", "proxy-authorization", "proxy-connection",
    "proxy-authenticate", "traceparent", "tracestate",
}  # fmt: skip


def name_error(name: str) -> str | None:
    """Return what is wrong with the name of a header; None if it can be used."""
    if not HEADER_NAME.fullmatch(name):
        return "is not a header name"
    if name.lower() in OURS or name.lower().startswith(("webhook-", "ce-")):
        return "is set by the system and can't be replaced"
    return None
