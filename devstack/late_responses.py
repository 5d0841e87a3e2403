"""Which webhooks came twice without a worker having been killed: the sender was too late for its own deadline."""

from __future__ import annotations

from collections import Counter

from devstack.http_receiver import Received


def late_responses(requests: list[Received], errors: Counter[str]) -> int:
    """Return how many of a delivery's requests may have been answered when the sender had given up.

    Such an attempt is recorded as a failure, as is one that got no response, which is therefore subtracted.  A
    request that was reset before the first byte may have gone out again within the same attempt, at no cost; but what
    the sender left unanswered is always a timeout.
    """
    unanswered = sum(not request.status for request in requests)
    cut = sum(request.cut for request in requests)
    return max(errors["timeout"] + errors["connection_lost"] - unanswered, errors["timeout"] - cut)


def outlived_leases(errors: Counter[str]) -> int:
    """Return how many of a delivery's successes a live worker recorded after its lease had ended.

    A worker that gets too little of a processor can use up a lease: the delivery is given to another one, with an
    attempt that says `worker_lost`, and sent again.  Unlike a worker that was killed, it still records its success, so
    there are several.
    """
    return min(errors["worker_lost"], max(0, errors[""] - 1))
