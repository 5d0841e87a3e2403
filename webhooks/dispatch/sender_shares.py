"""How many of new deliveries a sender takes without a claim: at most what a claim would give to their queues."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from django.conf import settings

from webhooks.dispatch.allocation import limit_hosts, share_between_organizations, share_in_turn
from webhooks.dispatch.claim import Occupancy
from webhooks.routing.sender_interface import QueueDemand


def share_places(
    demands: Sequence[QueueDemand], reserved: int, occupancy: Occupancy, free: int, unoccupied: int
) -> dict[uuid.UUID, int]:
    """Return for how many deliveries each queue gets places, of those that are `reserved`.

    occupancy: of the sender's places.  free: those that are neither taken nor reserved.  unoccupied: those that are not
    taken.  No queue gets more than its share of a claim of all unoccupied places, also while a claim has most of them
    reserved, few of which it may fill.  No organization gets more than half of the places that nobody has reserved: the
    rest is for others, as long as that claim lasts.
    """
    organizations = [demand.organization_id for demand in demands]
    rooms = limit_hosts(
        [demand.deliveries for demand in demands],
        [demand.host for demand in demands],
        occupancy.by_host,
        settings.MAX_CONNECTIONS_PER_HOST,
    )
    quotas = share_between_organizations(
        rooms,
        organizations,
        [occupancy.by_subscription[demand.subscription_id] for demand in demands],
        occupancy.by_organization,
        unoccupied,
    )
    most = max(1, (free + reserved) // 2)
    shares = share_in_turn(quotas, organizations, reserved, dict.fromkeys(organizations, most))
    return {demand.subscription_id: share for demand, share in zip(demands, shares, strict=True) if share}
