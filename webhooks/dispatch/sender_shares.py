"""How many of new deliveries a sender takes without a claim: at most what a claim would give to their queues."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from django.conf import settings

from webhooks.dispatch.allocation import limit_hosts, share_between_organizations
from webhooks.dispatch.claim import Occupancy
from webhooks.routing.sender_interface import QueueDemand


def share_places(
    demands: Sequence[QueueDemand], reserved: int, occupancy: Occupancy, unoccupied: int
) -> dict[uuid.UUID, int]:
    """Return for how many deliveries each queue gets places, of those that are `reserved`.

    occupancy: of the sender's places.  unoccupied: those that are not taken.  No queue gets more than its share of a
    claim of all of these, also while a claim has most of them reserved, few of which it may fill.
    """
    rooms = limit_hosts(
        [demand.deliveries for demand in demands],
        [demand.host for demand in demands],
        occupancy.by_host,
        settings.MAX_CONNECTIONS_PER_HOST,
    )
    quotas = share_between_organizations(
        rooms,
        [demand.organization_id for demand in demands],
        [occupancy.by_subscription[demand.subscription_id] for demand in demands],
        occupancy.by_organization,
        unoccupied,
    )
    shares: dict[uuid.UUID, int] = {}
    for demand, quota in zip(demands, quotas, strict=True):
        share = min(quota, reserved)
        reserved -= share
        if share:
            shares[demand.subscription_id] = share
    return shares
