"""How the subscriptions' endpoints behave, decided by the run's seed."""

from __future__ import annotations

import random
from collections import Counter
from enum import StrEnum

from devstack.http_receiver import OK, Received, Response

# The organization with a steady endpoint alone, which posts single events, and more of them than the others: the front
# door leases its deliveries.
PROMPT = "prompt"


class Kind(StrEnum):
    """How a subscription's endpoint behaves."""

    STEADY = "steady"  # responds at once
    SLOW = "slow"  # takes up to a third of a second
    FLAKY = "flaky"  # 500s, resets, and responses that never come


class Endpoints:
    """A receiver's behavior; a path ends with its kind."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._attempts: Counter[tuple[str, str]] = Counter()

    def __call__(self, request: Received, number: int) -> Response:
        kind = request.path.rpartition("/")[2]
        token = token_of(request)
        self._attempts[request.path, token] += 1
        chance = random.Random(f"{self._seed} {request.path} {token} {self._attempts[request.path, token]}").random()
        if kind == Kind.SLOW:
            return Response(delay=chance / 3)
        if kind == Kind.FLAKY and chance < 0.10:
            return Response(500)
        if kind == Kind.FLAKY and chance < 0.14:
            return Response(reset=True)
        if kind == Kind.FLAKY and chance < 0.155:
            return Response(delay=3600)  # hangs until the sender gives up
        return OK


def token_of(request: Received) -> str:
    """Return the token in an event's data; empty if there is none."""
    try:
        return str(request.document["data"]["token"])
    except (ValueError, KeyError, TypeError):
        return ""
