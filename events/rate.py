"""The rate limit of an organization's events."""

from __future__ import annotations

from core.problems import Problem
from core.ratelimits import RateLimitDecision, hit
from orgs.keys import Caller

POLICY = "events"


def require_possible(caller: Caller, events: int) -> None:
    """Raise Problem 413 for a batch that is larger than what the organization may send in a minute."""
    per_minute = caller.events_per_minute
    if per_minute and events > per_minute:
        raise Problem(
            "too_many_events",
            f"The batch holds {events} events; the organization may send {per_minute} a minute.",
            extra={"limit_events": per_minute},
        )


def over_limit(decision: RateLimitDecision) -> Problem:
    """Return the 429 of an organization that is over its limit."""
    return Problem(
        "rate_limited",
        f"The organization may send {decision.limit} events a minute.",
        headers=decision.headers(POLICY),
    )


def count(caller: Caller, events: int) -> RateLimitDecision | None:
    """Count `events` against the caller's limit and return what is left; None if there is no limit.

    Raises Problem 429 over the limit, 413 for a batch that is larger than the limit.
    """
    require_possible(caller, events)
    if not caller.events_per_minute:
        return None
    decision = hit(POLICY, str(caller.organization_id), caller.events_per_minute, events)
    if not decision.allowed:
        raise over_limit(decision)
    return decision


def headers(decision: RateLimitDecision | None) -> dict[str, str]:
    """Return the response headers that tell what is left; none without a limit."""
    return {} if decision is None else decision.headers(POLICY)
