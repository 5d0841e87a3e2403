"""A dedup id is remembered for the window that the setting names, and then it is new again, however its event comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now

from events.group_commit import Counted, GroupCommit
from events.ingest import Ingested, IngestStatus, ingest, ingest_batch
from events.models import DedupKey, Event
from events.payload import NewEvent
from orgs.keys import authenticate, create_api_key
from orgs.models import Organization

pytestmark = pytest.mark.django_db(transaction=True)  # the front door has a connection of its own

Send = Callable[[Organization, NewEvent], Ingested]


def alone(organization: Organization, event: NewEvent) -> Ingested:
    return ingest(organization.id, event)


def in_batch(organization: Organization, event: NewEvent) -> Ingested:
    (_, result) = ingest_batch(organization.id, [NewEvent("filler", "0", None), event])
    return result


def through_the_front_door(organization: Organization, event: NewEvent) -> Ingested:
    caller = authenticate(create_api_key(organization)[1])
    assert caller is not None

    async def run() -> Ingested:
        async with GroupCommit() as commits:
            (_, result), _ = await commits.accept(caller, [NewEvent("filler", "0", None), event], Counted())
            return result

    return asyncio.run(run())


every_way = pytest.mark.parametrize("send", [alone, in_batch, through_the_front_door])


def database_time() -> float:
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(cursor.fetchone()[0])


def order(data: str) -> NewEvent:
    return NewEvent("order.created", data, "d")


@every_way
def test_a_dedup_id_expires_when_the_setting_says(organization: Organization, settings: Any, send: Send) -> None:
    settings.DEDUP_WINDOW = 7200.0
    before = database_time()
    send(organization, order("1"))
    after = database_time()
    expires_at = DedupKey.objects.get().expires_at.timestamp()
    assert before + 7200 - 0.001 <= expires_at <= after + 7200 + 0.001


@every_way
def test_within_the_window_the_id_stands_for_the_first_event(organization: Organization, send: Send) -> None:
    first = send(organization, order("1"))
    kept = DedupKey.objects.get()
    assert send(organization, order("1")) == Ingested(IngestStatus.DUPLICATE, first.event_id)
    assert send(organization, order("2")) == Ingested(IngestStatus.CONFLICT, first.event_id)
    still = DedupKey.objects.get()
    assert (still.event_id, bytes(still.fingerprint)) == (kept.event_id, bytes(kept.fingerprint))
    assert still.expires_at == kept.expires_at, "a repetition doesn't lengthen the window"
    assert Event.objects.filter(dedup_id="d").count() == 1


@every_way
def test_after_the_window_the_id_stands_for_the_next_event_for_a_whole_window(
    organization: Organization, settings: Any, send: Send
) -> None:
    settings.DEDUP_WINDOW = 7200.0
    first = send(organization, order("1"))
    DedupKey.objects.update(expires_at=Now())
    before = database_time()
    second = send(organization, order("2"))
    assert second.status is IngestStatus.ACCEPTED
    assert second.event_id != first.event_id
    assert DedupKey.objects.get().event_id == second.event_id
    assert DedupKey.objects.get().expires_at.timestamp() >= before + 7200 - 0.001
    # It is the second one's id now, by its content, too.
    assert send(organization, order("2")) == Ingested(IngestStatus.DUPLICATE, second.event_id)
    assert send(organization, order("1")) == Ingested(IngestStatus.CONFLICT, second.event_id)
    assert Event.objects.filter(dedup_id="d").count() == 2
