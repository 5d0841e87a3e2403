"""Organizations whose deliveries lag because the processors are busy.

Workers note them in Redis, and the front door paces their requests (`events.pacing`).  Without Redis, nobody is paced
for this.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from core.redis import RedisUnavailable, call_redis

# How long a note counts.
NOTE_SECONDS = 1.0


def note_lagging(organization_ids: Collection[uuid.UUID]) -> None:
    """Note that the organizations' deliveries lag."""

    def write(redis: Any) -> None:
        pipeline = redis.pipeline(transaction=False)
        for organization_id in organization_ids:
            pipeline.set(_key(organization_id), 1, px=int(NOTE_SECONDS * 1000))
        pipeline.execute()

    try:
        call_redis(write)
    except RedisUnavailable:
        return


def lagging_among(organization_ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Return those of the organizations that were noted in the last NOTE_SECONDS."""
    asked = list(organization_ids)
    if not asked:
        return set()
    try:
        notes = call_redis(lambda redis: redis.mget([_key(organization_id) for organization_id in asked]))
    except RedisUnavailable:
        return set()
    return {organization_id for organization_id, note in zip(asked, notes, strict=True) if note is not None}


def _key(organization_id: uuid.UUID) -> str:
    return f"triggers:lagging:{organization_id}"
