"""Which events of a round are processed: fair between organizations, however many deliveries one of them wants."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from webhooks.routing.claim_events import AcceptedEvent

# A round that several organizations share is this many times smaller: most of them have few events waiting.
SHARED_ROUND = 4
# However many organizations share it, an event that comes in parts gets this part of a round at least.
SMALLEST_PART = 10


@dataclass(frozen=True, slots=True)
class Choice:
    """The events of a round, in order.  in_part: those that want more deliveries than they get, and how many they get.

    What is left of them is for later rounds, and until then they stay accepted.
    """

    events: list[AcceptedEvent]
    in_part: dict[uuid.UUID, int]


def choose_events(
    events: Sequence[AcceptedEvent],
    wanted: Mapping[uuid.UUID, int],
    most: int,
    overdue: Collection[uuid.UUID] = (),
    *,
    is_shared: bool = False,
) -> Choice:
    """Return the events of a round that makes about `most` deliveries.

    wanted: how many deliveries each event needs.  overdue: organizations that an earlier round passed over.  is_shared:
    whether other organizations may have events in a moment; if there are events of several, they share it anyway.

    Organizations share the round evenly, and the others get what one doesn't use.  Those that want least come first, so
    that an event with a thousand subscriptions doesn't delay one with a single subscription.  But one event of each
    overdue organization comes before all others, so that none waits forever.  Each organization's events stay in order.
    """
    by_organization: dict[uuid.UUID, list[AcceptedEvent]] = defaultdict(list)
    for event in events:
        by_organization[event.organization_id].append(event)
    totals = {key: sum(wanted[event.id] for event in waiting) for key, waiting in by_organization.items()}
    order = sorted(by_organization, key=lambda key: (key not in overdue, totals[key]))
    chosen: list[AcceptedEvent] = []
    in_part: dict[uuid.UUID, int] = {}
    left = most_of_one = max(1, most // SHARED_ROUND) if is_shared or len(order) > 1 else most
    for position, key in enumerate(order):
        share = left if len(order) == 1 else left // (len(order) - position)
        used = 0
        for number, event in enumerate(by_organization[key]):
            is_its_turn = number == 0 and (key in overdue or not chosen)
            if used + wanted[event.id] > share and not is_its_turn:
                break
            chosen.append(event)
            if wanted[event.id] > most_of_one:  # it is the organization's only one in this round
                in_part[event.id] = used = max(1, share, most_of_one // SMALLEST_PART)
                break
            used += wanted[event.id]
        left = max(0, left - used)
    return Choice(chosen, in_part)
