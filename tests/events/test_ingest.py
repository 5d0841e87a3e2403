"""Accepting events: what counts as accepted is committed, once, whoever offers it at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from devstack.processes import ROOT
from events.ingest import Ingested, IngestStatus, ingest, ingest_batch
from events.models import DedupKey, Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.servers import postgres
from tests.webhooks.helpers import in_threads

pytestmark = pytest.mark.django_db(transaction=True)


def event(data: str = "1", dedup_id: str | None = None) -> NewEvent:
    return NewEvent("order.created", data, dedup_id)


def test_of_many_threads_with_one_dedup_id_one_is_accepted_and_all_learn_its_id(organization: Organization) -> None:
    for round_number in range(5):
        results = in_threads(12, lambda _, r=round_number: ingest(organization.id, event(dedup_id=f"d{r}")))
        assert Counter(one.status for one in results) == {IngestStatus.ACCEPTED: 1, IngestStatus.DUPLICATE: 11}
        (event_id,) = {one.event_id for one in results}
        assert Event.objects.get(dedup_id=f"d{round_number}").id == event_id


def test_of_many_threads_with_other_content_one_is_accepted_and_the_others_conflict_with_it(
    organization: Organization,
) -> None:
    results = in_threads(10, lambda number: ingest(organization.id, event(str(number), "d")))
    assert Counter(one.status for one in results) == {IngestStatus.ACCEPTED: 1, IngestStatus.CONFLICT: 9}
    assert {one.event_id for one in results} == {Event.objects.get().id}


def test_single_posts_and_batches_at_once_agree_on_who_was_first(organization: Organization) -> None:
    def work(number: int) -> list[Ingested]:
        events = [event(dedup_id=f"d{n}") for n in range(40)]
        if number % 2:
            return ingest_batch(organization.id, events if number % 4 == 1 else events[::-1])
        return [ingest(organization.id, one) for one in events]

    results = [one for part in in_threads(6, work) for one in part]
    assert Counter(one.status for one in results) == {IngestStatus.ACCEPTED: 40, IngestStatus.DUPLICATE: 200}
    assert {one.event_id for one in results} == set(Event.objects.values_list("id", flat=True))


def test_at_the_end_of_the_window_one_of_many_threads_takes_the_id_over(organization: Organization) -> None:
    first = ingest(organization.id, event("1", "d")).event_id
    for round_number in range(2, 5):
        DedupKey.objects.update(expires_at=Now())
        results = in_threads(8, lambda _, r=round_number: ingest(organization.id, event(str(r), "d")))
        assert Counter(one.status for one in results) == {IngestStatus.ACCEPTED: 1, IngestStatus.DUPLICATE: 7}
        assert first not in {one.event_id for one in results}
    assert Event.objects.count() == 4
    assert DedupKey.objects.count() == 1


def test_two_organizations_share_no_dedup_id_even_at_the_same_moment(
    organization: Organization, other_organization: Organization
) -> None:
    ids = (organization.id, other_organization.id)
    results = in_threads(8, lambda number: ingest(ids[number % 2], event(str(number % 2), "d")))
    assert Counter(one.status for one in results) == {IngestStatus.ACCEPTED: 2, IngestStatus.DUPLICATE: 6}
    assert {e.organization_id for e in Event.objects.all()} == set(ids)


def test_whoever_waits_for_another_s_commit_is_accepted_when_that_one_rolls_back(organization: Organization) -> None:
    """The memory of a dedup id never outlives the event that it stands for."""
    results: list[Ingested] = []

    def other() -> None:
        try:
            results.append(ingest(organization.id, event(dedup_id="d")))
        finally:
            connection.close()

    thread = threading.Thread(target=other)
    with transaction.atomic():
        lost = ingest(organization.id, event(dedup_id="d"))
        thread.start()
        thread.join(0.3)
        assert results == []
        transaction.set_rollback(True)
    thread.join(30)
    (kept,) = results
    assert kept.status is IngestStatus.ACCEPTED
    assert kept.event_id != lost.event_id
    assert [e.id for e in Event.objects.all()] == [kept.event_id]


def test_a_batch_that_the_database_refuses_leaves_neither_events_nor_dedup_ids(organization: Organization) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE events_event ADD CONSTRAINT poison CHECK (data <> '13') NOT VALID")
    try:
        with pytest.raises(Exception, match="poison"):
            ingest_batch(organization.id, [event(str(n), f"d{n}") for n in range(20)])
        assert (Event.objects.count(), DedupKey.objects.count()) == (0, 0)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE events_event DROP CONSTRAINT poison")
    assert {r.status for r in ingest_batch(organization.id, [event("13", "d13")])} == {IngestStatus.ACCEPTED}


def test_within_a_batch_the_first_with_an_id_counts(organization: Organization) -> None:
    batch = [event("1", "a"), event("2", "a"), event("1", "a"), event("1"), event("1")]
    results = ingest_batch(organization.id, batch)
    expected = [
        IngestStatus.ACCEPTED,
        IngestStatus.CONFLICT,
        IngestStatus.DUPLICATE,
        IngestStatus.ACCEPTED,
        IngestStatus.ACCEPTED,
    ]
    assert [one.status for one in results] == expected
    assert results[0].event_id == results[1].event_id == results[2].event_id
    assert Event.objects.count() == 3


def test_the_window_is_measured_by_the_database_and_is_the_setting_s(organization: Organization, settings: Any) -> None:
    settings.DEDUP_WINDOW = 90.0
    ingest(organization.id, event(dedup_id="d"))
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM events_dedupkey")
        assert 30 < float(cursor.fetchone()[0]) <= 90


def test_processes_share_no_memory_and_still_accept_each_id_once(organization: Organization) -> None:
    program = (
        "import django; django.setup()\n"
        "import json, sys, uuid\n"
        "from events.ingest import ingest\n"
        "from events.payload import NewEvent\n"
        "made = [ingest(uuid.UUID(sys.argv[1]), NewEvent('a.b', '1', f'd{n}')) for n in range(100)]\n"
        "print(json.dumps([[one.status, str(one.event_id)] for one in made]))\n"
    )
    environment = {**os.environ, "DATABASE_URL": postgres.url(connection.settings_dict["NAME"])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(organization.id)],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    results = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert Counter(outcome for part in results for outcome, _ in part) == {"accepted": 100, "duplicate": 100}
    assert [event_id for _, event_id in results[0]] == [event_id for _, event_id in results[1]]
