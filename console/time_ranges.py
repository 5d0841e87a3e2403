"""The time spans that lists can be narrowed to: the home's time ranges, and one that is shorter."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from webhooks.display.series import SPANS as RANGES

SPANS = {
    "15m": ("Last 15 minutes", datetime.timedelta(minutes=15)),
    **{name: (f"Last {span.last}", datetime.timedelta(minutes=span.minutes)) for name, span in RANGES.items()},
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
