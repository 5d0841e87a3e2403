"""The rate limit of an organization's events."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from core.problems import Problem
from core.ratelimits import RateLimitDecision, hit
from orgs.keys import Caller

POLICY = "events"
# Repeated requests with an `Idempotency-Key`.  They store nothing, so they don't count against the events' limit.  They
# have a separate limit of the same size, in which each request counts as one, however many events it has.
REPLAYS = "replays"

_MEMO = "triggers.rate"


def require_possible(caller: Caller, events: int) -> None:
    """Raise Problem 413 for a batch of more events than the organization may send in a minute."""
    per_minute = caller.events_per_minute
    if per_minute and events > per_minute:
        raise Problem(
            "too_many_events",
            f"The batch holds {events} events; the organization may send {per_minute} a minute.",
            extra={"limit_events": per_minute},
        )


def over_limit(decision: RateLimitDecision, policy: str = POLICY) -> Problem:
    """Return the 429 of an organization that is over its limit."""
    what = "send {} events" if policy == POLICY else "repeat {} requests"
    return Problem(
        "rate_limited",
        f"The organization may {what.format(decision.limit)} a minute.",
        headers=decision.headers(policy),
    )


def count(caller: Caller, events: int, memo: MutableMapping[str, Any]) -> RateLimitDecision | None:
    """Count `events` against the caller's limit and return what is left; None if there is no limit.

    memo: of the request, so that it counts once, however often its transaction is tried.

    Raises Problem 429 over the limit, 413 for a batch that is larger than the limit.
    """
    require_possible(caller, events)
    if _MEMO not in memo:
        memo[_MEMO] = _count(POLICY, caller, events)
    decision: RateLimitDecision | None = memo[_MEMO]
    return decision


def count_replay(caller: Caller) -> RateLimitDecision | None:
    """Count a request that gets an earlier response again, and return what is left of the limit; None if there is none.

    Raises Problem 429 over the limit.
    """
    return _count(REPLAYS, caller, 1)


def _count(policy: str, caller: Caller, cost: int) -> RateLimitDecision | None:
    if not caller.events_per_minute:
        return None
    decision = hit(policy, str(caller.organization_id), caller.events_per_minute, cost)
    if not decision.allowed:
        raise over_limit(decision, policy)
    return decision


def headers(decision: RateLimitDecision | None, policy: str = POLICY) -> dict[str, str]:
    """Return the response headers with what is left; none without a limit."""
    return {} if decision is None else decision.headers(policy)
