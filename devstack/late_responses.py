"""Which webhooks a receiver may have answered when the sender had given up."""

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
