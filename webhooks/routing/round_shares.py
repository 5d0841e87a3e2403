"""Which events of a round are processed: fair between organizations, however many deliveries one of them wants."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Sequence

from webhooks.routing.claim_events import AcceptedEvent

# A round that several organizations share is this many times smaller: most of them have few events waiting.
SHARED_ROUND = 4


def choose_events(
    events: Sequence[AcceptedEvent],
    wanted: dict[uuid.UUID, int],
    most: int,
    overdue: Collection[uuid.UUID] = (),
    backlogged: Collection[uuid.UUID] = (),
) -> list[AcceptedEvent]:
    """Return the events of a round that makes about `most` deliveries.

    wanted: how many deliveries each event needs.  overdue: organizations that an earlier round passed over.
    backlogged: those whose events another process takes if they don't fit here.

    Organizations share the round evenly, and the others get what one doesn't use.  Those that want least come first, so
    that an event with a thousand subscriptions doesn't delay one with a single subscription.  But one event of each
    overdue organization comes before all others, so that none waits forever.  A backlogged one never gets more than its
    share of a round that several share, even if it is alone: an event that comes next would have to wait for it.  Each
    organization's events stay in order.
    """
    by_organization: dict[uuid.UUID, list[AcceptedEvent]] = defaultdict(list)
    for event in events:
        by_organization[event.organization_id].append(event)
    totals = {key: sum(wanted[event.id] for event in waiting) for key, waiting in by_organization.items()}
    order = sorted(by_organization, key=lambda key: (key not in overdue, totals[key]))
    chosen: list[AcceptedEvent] = []
    is_shared = len(order) > 1 or any(key in backlogged for key in order)
    left = max(1, most // SHARED_ROUND) if is_shared else most
    for position, key in enumerate(order):
        share = left if len(order) == 1 else left // (len(order) - position)
        used = 0
        for number, event in enumerate(by_organization[key]):
            is_its_turn = number == 0 and key not in backlogged and (key in overdue or not chosen)
            if used + wanted[event.id] > share and not is_its_turn:
                break
            chosen.append(event)
            used += wanted[event.id]
        left = max(0, left - used)
    return chosen
