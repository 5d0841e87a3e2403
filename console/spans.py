"""The time spans that lists can be narrowed to."""

from __future__ import annotations

import datetime

SPANS = {
    "15m": ("Last 15 minutes", datetime.timedelta(minutes=15)),
    "1h": ("Last hour", datetime.timedelta(hours=1)),
    "6h": ("Last 6 hours", datetime.timedelta(hours=6)),
    "1d": ("Last 24 hours", datetime.timedelta(days=1)),
    "7d": ("Last 7 days", datetime.timedelta(days=7)),
}
