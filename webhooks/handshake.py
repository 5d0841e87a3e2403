"""The handshake of REST hooks: asks whether the owner of an endpoint wants its webhooks.

A POST with a random `X-Hook-Secret` goes to the endpoint, which confirms it with a 2xx that repeats the header.  Only
those who ask for it get one: Zapier, for example, doesn't support it.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from webhooks import probes
from webhooks.credentials import with_columns
from webhooks.destinations.exchange import response_headers
from webhooks.destinations.http.destination import USER_AGENT
from webhooks.destinations.http.endpoint import Endpoint, open_endpoint
from webhooks.destinations.outcome import Outcome
from webhooks.models import Subscription

HEADER = "X-Hook-Secret"
PER_MINUTE = 30
_CREDENTIALS = ("headers", "auth", "client_certificate")


class HandshakeFailed(Exception):
    """The endpoint didn't confirm.  sentence: what it did instead, for the tenant."""

    def __init__(self, sentence: str, outcome: Outcome) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.outcome = outcome


def shake_hands(
    organization_id: uuid.UUID, url: str, values: Mapping[str, Any], current: Subscription | None = None
) -> None:
    """Ask the endpoint whether it wants webhooks; returns if it does.

    values: fields as `subscriptions.create` and `change` have them, of which the credentials authorize the request.
    current: the subscription that is to be changed.  Raises HandshakeFailed and TooManyProbes.  To be called outside of
    a transaction: this takes up to `probes.MAX_SECONDS`.
    """
    token = secrets.token_urlsafe(32)
    headers = [("content-type", "application/json"), ("user-agent", USER_AGENT), (HEADER, token)]
    endpoint = _endpoint(url, values, current)
    outcome = probes.probe(
        organization_id,
        "handshakes",
        PER_MINUTE,
        lambda destination: destination.send_plain(endpoint, organization_id, headers, b"{}"),
    )
    if not outcome.succeeded:
        if outcome.status_code is None:
            raise HandshakeFailed(outcome.detail or "The request failed.", outcome)
        raise HandshakeFailed(f"The endpoint responded with {outcome.status_code}.", outcome)
    echoes = [value for name, value in _response_headers(outcome) if name.lower() == HEADER.lower()]
    if not echoes:
        raise HandshakeFailed(f"The endpoint's response had no {HEADER}.", outcome)
    if echoes != [token]:
        raise HandshakeFailed(f"The endpoint's response had another {HEADER}.", outcome)


def _endpoint(url: str, values: Mapping[str, Any], current: Subscription | None) -> Endpoint:
    columns = with_columns({name: values[name] for name in _CREDENTIALS if name in values})
    sealed = {
        name: columns.get(name, getattr(current, name, ""))
        for name in ("encrypted_headers", "encrypted_auth", "encrypted_client_certificate")
    }
    endpoint = open_endpoint(
        url,
        sealed["encrypted_headers"],
        "",  # it signs nothing: the endpoint doesn't have the secret yet
        sealed_auth=sealed["encrypted_auth"],
        sealed_certificate=sealed["encrypted_client_certificate"],
    )
    # A header of the subscription with this name would make two.
    headers = tuple(pair for pair in endpoint.headers if pair[0].lower() != HEADER.lower())
    return replace(endpoint, headers=headers)


def _response_headers(outcome: Outcome) -> list[tuple[str, str]]:
    return response_headers(outcome.exchange) if outcome.exchange else []
