"""A dedup id is known for the window that the setting names, and then it is new again: alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now

from events.ingest import Ingested, IngestStatus, ingest, ingest_batch
from events.models import DedupKey, Event
from events.payload import NewEvent
from orgs.models import Organization

pytestmark = pytest.mark.django_db

Send = Callable[[Organization, NewEvent], Ingested]


def alone(organization: Organization, event: NewEvent) -> Ingested:
    return ingest(organization.id, event)


def in_batch(organization: Organization, event: NewEvent) -> Ingested:
    (_, result) = ingest_batch(organization.id, [NewEvent("filler", "0", None), event])
    return result


both_ways = pytest.mark.parametrize("send", [alone, in_batch])


def database_time() -> float:
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(cursor.fetchone()[0])


def order(data: str) -> NewEvent:
    return NewEvent("order.created", data, "d")


@both_ways
def test_a_dedup_id_expires_when_the_setting_says(organization: Organization, settings: Any, send: Send) -> None:
    settings.DEDUP_WINDOW = 7200.0
    before = database_time()
    send(organization, order("1"))
    after = database_time()
    expires_at = DedupKey.objects.get().expires_at.timestamp()
    assert before + 7200 - 0.001 <= expires_at <= after + 7200 + 0.001


@both_ways
def test_within_the_window_the_id_stands_for_the_first_event(organization: Organization, send: Send) -> None:
    first = send(organization, order("1"))
    kept = DedupKey.objects.get()
    assert send(organization, order("1")) == Ingested(IngestStatus.DUPLICATE, first.event_id)
    assert send(organization, order("2")) == Ingested(IngestStatus.CONFLICT, first.event_id)
    known = DedupKey.objects.get()
    assert (known.event_id, bytes(known.fingerprint)) == (kept.event_id, bytes(kept.fingerprint))
    assert known.expires_at == kept.expires_at, "a repetition doesn't lengthen the window"
    assert Event.objects.filter(dedup_id="d").count() == 1


@both_ways
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
