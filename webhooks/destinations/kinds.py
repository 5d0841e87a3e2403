"""The kinds of destinations that webhooks are pushed to: how one is opened, and who sends to it.

An inbox is none of them: nothing is sent there, its deliveries are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from webhooks.destinations.base import Destination, Outgoing
from webhooks.destinations.http.destination import HttpDestination
from webhooks.destinations.http.endpoint import Endpoint, open_endpoint
from webhooks.destinations.outcome import Outcome
from webhooks.models import DestinationKind

# Of a subscription `s`, what a SealedEndpoint holds.  The previous secrets are those that sign, the newest first.
ENDPOINT_COLUMNS = """s.kind, s.url, s.encrypted_headers, s.encrypted_secret, s.format, s.transform,
       s.encrypted_auth, s.encrypted_client_certificate, s.signature_header,
       CASE WHEN s.encrypted_previous_secrets = '{}' THEN '{}' ELSE ARRAY (
           SELECT p.secret
           FROM unnest(s.encrypted_previous_secrets, s.previous_secrets_expire_at)
               WITH ORDINALITY AS p(secret, expires_at, position)
           WHERE p.expires_at IS NULL OR p.expires_at > clock_timestamp() ORDER BY p.position
       ) END AS encrypted_previous_secrets"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedEndpoint:
    """Where a subscription's webhooks go, as it is stored.  Rows with ENDPOINT_COLUMNS inherit from it."""

    kind: str
    url: str
    encrypted_headers: str
    encrypted_secret: str
    encrypted_previous_secrets: Sequence[str]
    format: str
    transform: str
    encrypted_auth: str
    encrypted_client_certificate: str
    signature_header: str

    def open(self) -> Endpoint:
        """Return the endpoint opened; if it can't be, one whose `fault` says why."""
        return _OPENERS[self.kind](self)


def _open_http(sealed: SealedEndpoint) -> Endpoint:
    return open_endpoint(
        sealed.url,
        sealed.encrypted_headers,
        sealed.encrypted_secret,
        sealed.encrypted_previous_secrets,
        sealed.format,
        sealed.transform,
        sealed_auth=sealed.encrypted_auth,
        sealed_certificate=sealed.encrypted_client_certificate,
        signature_header=sealed.signature_header,
    )


_OPENERS: Mapping[str, Callable[[SealedEndpoint], Endpoint]] = {
    DestinationKind.HTTP.value: _open_http,
    DestinationKind.INBOX.value: _open_http,  # for previews, which show a webhook without a URL
}


class PushedDestinations:
    """A `Destination` that passes each event on to the one for its kind of endpoint."""

    def __init__(self) -> None:
        self._by_endpoint: Mapping[type, Destination] = {Endpoint: HttpDestination()}

    async def send(self, outgoing: Outgoing, timestamp: float) -> Outcome:
        return await self._by_endpoint[type(outgoing.endpoint)].send(outgoing, timestamp)

    async def aclose(self) -> None:
        for destination in self._by_endpoint.values():
            await destination.aclose()
