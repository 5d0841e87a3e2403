"""Percentiles and rates of what was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from devstack.http_receiver import Arrival


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` (0…1) of `values` don't exceed (nearest rank); NaN for none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    return percentile(values, 0.5)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95, p99 and max."""
    return {
        "p50": percentile(values, 0.50),
        "p95": percentile(values, 0.95),
        "p99": percentile(values, 0.99),
        "max": percentile(values, 1.0),
    }


def duplicates(taken: Sequence[Arrival]) -> int:
    """Return how many webhooks came more than once to the same path."""
    return sum(count - 1 for count in Counter((path, event_id) for path, event_id, _ in taken).values())
