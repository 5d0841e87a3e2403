"""What an outcome means, in words for an operator."""

from __future__ import annotations

_WORDS = {
    "delivered": "delivered",
    "timeout": "no response in time",
    "dns_failed": "host name not found",
    "connection_refused": "connection refused",
    "connection_failed": "can't connect",
    "connection_lost": "connection lost before the response",
    "tls_failed": "TLS failed",
    "invalid_response": "response isn't HTTP",
    "address_not_allowed": "address not allowed",
    "proxy_failed": "egress proxy failed",
    "oauth_failed": "no OAuth token for the endpoint",
    "transform_failed": "the expression failed",
    "internal_error": "can't be sent (internal error)",
    "worker_lost": "worker stopped during the attempt",
    "payload_erased": "payload erased",
    "held_too_long": "held for too long",
    "not_fetched": "not fetched in time",
    "given_back": "given back by its consumer",
}


def error_words(error: str, status_code: int | None) -> str:
    """Return what an attempt or a delivery failed of; empty if it didn't."""
    return words_for(f"{error} {status_code}" if status_code else error) if error else ""


def words_for(outcome: str) -> str:
    """Return the words for an outcome of the rollups, such as `http_status 503`."""
    name, _, status = outcome.partition(" ")
    if name == "http_status":
        return f"HTTP {status}"
    if name == "redirect":
        return f"HTTP {status} (redirect)"
    return f"{_WORDS.get(name, name)} ({status})" if status else _WORDS.get(name, name)
