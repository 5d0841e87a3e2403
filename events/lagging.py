"""Organizations whose deliveries lag because the processors are busy.

Workers note them in Redis, and the front door paces their requests (`events.pacing`).  Without Redis, nobody is paced
for this.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any

from core.redis import RedisUnavailable, call_redis

# How long a note counts.
NOTE_SECONDS = 1.0


def note_lagging(rates: Mapping[uuid.UUID, float]) -> None:
    """Note that the deliveries of organizations lag.  rates: at which their results are recorded, per second."""

    def write(redis: Any) -> None:
        pipeline = redis.pipeline(transaction=False)
        for organization_id, rate in rates.items():
            pipeline.set(_key(organization_id), round(rate), px=int(NOTE_SECONDS * 1000))
        pipeline.execute()

    try:
        call_redis(write)
    except RedisUnavailable:
        return


def lagging_among(organization_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, float]:
    """Return those of the organizations that were noted in the last NOTE_SECONDS, with the rates of the notes."""
    asked = list(organization_ids)
    if not asked:
        return {}
    try:
        notes = call_redis(lambda redis: redis.mget([_key(organization_id) for organization_id in asked]))
    except RedisUnavailable:
        return {}
    return {
        organization_id: float(note) for organization_id, note in zip(asked, notes, strict=True) if note is not None
    }


def _key(organization_id: uuid.UUID) -> str:
    return f"triggers:lagging:{organization_id}"
