"""The time spans that lists can be narrowed to.  The home's time ranges (`display.series`) have the same names."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

SPANS = {
    "15m": ("Last 15 minutes", datetime.timedelta(minutes=15)),
    "1h": ("Last hour", datetime.timedelta(hours=1)),
    "6h": ("Last 6 hours", datetime.timedelta(hours=6)),
    "24h": ("Last 24 hours", datetime.timedelta(hours=24)),
    "7d": ("Last 7 days", datetime.timedelta(days=7)),
    "30d": ("Last 30 days", datetime.timedelta(days=30)),
}


@dataclass(frozen=True, slots=True)
class FailedSince:
    """Deliveries that have failed for good in a span: a choice of the list's filter by status."""

    label: str
    age: datetime.timedelta


# By the value of the filter, such as `failed-1h`.
FAILED_SINCE = {
    f"failed-{name}": FailedSince(f"failed in the {label.lower()}", age) for name, (label, age) in SPANS.items()
}
