"""An event that is sent to a subscription without a delivery, for tests and previews."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass

from webhooks.destinations.http.endpoint import Endpoint
from webhooks.destinations.kinds import SealedEndpoint
from webhooks.models import Subscription


@dataclass(frozen=True, slots=True)
class SingleOutgoing:
    """See `destinations.base.Outgoing`."""

    event_id: uuid.UUID
    event_type: str
    event_created_at: datetime.datetime
    event_data: str
    endpoint: Endpoint
    organization_id: uuid.UUID
    event_trace: str | None = None
    event_cloudevent: str | None = None


def endpoint_of(subscription: Subscription, now: datetime.datetime) -> Endpoint:
    """Return the subscription's endpoint, decrypted, with the secrets that sign at `now`."""
    previous = zip(subscription.encrypted_previous_secrets, subscription.previous_secrets_expire_at, strict=True)
    return SealedEndpoint(
        kind=subscription.kind,
        url=subscription.url,
        encrypted_headers=subscription.encrypted_headers,
        encrypted_secret=subscription.encrypted_secret,
        encrypted_previous_secrets=[sealed for sealed, ends_at in previous if ends_at is None or ends_at > now],
        format=subscription.format,
        transform=subscription.transform,
        encrypted_auth=subscription.encrypted_auth,
        encrypted_client_certificate=subscription.encrypted_client_certificate,
        signature_header=subscription.signature_header,
    ).open()
