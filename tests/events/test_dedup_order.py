"""Two statements that bring the same dedup ids in opposite orders don't wait for each other.

Both claim them in the ids' own order: whoever waits for the first one holds none of the others.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence

import pytest

from events.group_commit import Counted, GroupCommit
from events.ingest import Ingested, ingest_batch
from events.payload import NewEvent
from orgs.keys import authenticate, create_api_key
from orgs.models import Organization
from tests.webhooks.helpers import in_threads
from tests.webhooks.transactions import another_transaction, wait_until_held_up

CLAIM = """
INSERT INTO events_dedupkey (organization_id, dedup_id, event_id, fingerprint, expires_at)
VALUES (%s, %s, %s, '', now() + interval '1 day')
"""


def in_batch(organization: Organization, events: Sequence[NewEvent]) -> list[Ingested]:
    return ingest_batch(organization.id, events)


def through_the_front_door(organization: Organization, events: Sequence[NewEvent]) -> list[Ingested]:
    caller = authenticate(create_api_key(organization)[1])
    assert caller is not None

    async def run() -> list[Ingested]:
        async with GroupCommit() as commits:
            results, _ = await commits.accept(caller, events, Counted())
            return results

    return asyncio.run(run())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("send", [in_batch, through_the_front_door])
def test_whoever_waits_for_a_dedup_id_holds_none_that_comes_after_it(
    organization: Organization, send: Callable[[Organization, Sequence[NewEvent]], list[Ingested]]
) -> None:
    events = [NewEvent("order.created", "1", dedup_id) for dedup_id in ("z", "a")]
    with another_transaction() as other:
        other.execute(CLAIM, (organization.id, "a", uuid.uuid4()))

        def work(number: int) -> list[Ingested]:
            if number == 0:
                return send(organization, events)
            wait_until_held_up(other)
            other.execute("SET LOCAL lock_timeout = '500ms'")  # less than PostgreSQL takes to find a deadlock
            other.execute(CLAIM, (organization.id, "z", uuid.uuid4()))
            other.commit()
            return []

        results = [one for found in in_threads(2, work) for one in found]
    assert [result.status for result in results] == ["conflict", "conflict"]
