"""The bound on what waits: nothing accepted is dropped for it, and it opens by itself."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from structlog.testing import capture_logs

from core.problems import Problem
from events import backlog
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.api.helpers import assert_problem
from tests.webhooks.helpers import fan_out, in_threads
from tests.webhooks.transactions import another_transaction, wait_until_held_up

pytestmark = pytest.mark.django_db


def _accept(organization: Organization, count: int) -> None:
    for _ in range(count):
        ingest(organization.id, NewEvent("a.b", "1", None))


def test_over_the_bound_a_post_is_refused_and_what_was_accepted_stays(
    organization: Organization, api: Any, settings: Any
) -> None:
    settings.MAX_QUEUE_LENGTH = 5
    _accept(organization, 5)
    response = api.post("/api/events", {"type": "a.b", "data": 1})
    problem = assert_problem(response, 503)
    assert problem["code"] == "backlog_full"
    assert int(response["Retry-After"]) > 0
    assert Event.objects.count() == 5


def test_finished_and_broken_events_do_not_count_so_it_opens_by_itself(
    organization: Organization, api: Any, settings: Any
) -> None:
    settings.MAX_QUEUE_LENGTH = 5
    _accept(organization, 5)
    assert api.post("/api/events", {"type": "a.b", "data": 1}).status_code == 503
    fan_out()
    backlog.estimate.reset()  # a second later
    assert api.post("/api/events", {"type": "a.b", "data": 1}).status_code == 202
    Event.objects.update(status="error")
    backlog.estimate.reset()
    assert backlog.waiting_events(10) == 0
    assert api.post("/api/events", {"type": "a.b", "data": 1}).status_code == 202


def test_between_two_counts_what_this_process_lets_in_is_added(organization: Organization, settings: Any) -> None:
    settings.MAX_QUEUE_LENGTH = 10
    for _ in range(3):
        backlog.require_room(organization.id, 4)  # a batch may go over the edge; the next one may not
    with pytest.raises(Problem) as refused:
        backlog.require_room(organization.id, 1)
    assert refused.value.code == "backlog_full"


def test_what_one_organization_is_refused_is_not_counted_against_another(
    organization: Organization, other_organization: Organization, settings: Any
) -> None:
    settings.MAX_WAITING_EVENTS, settings.MAX_QUEUE_LENGTH = 2, 3
    codes = []
    with capture_logs() as logged:
        for who in (organization,) * 5 + (other_organization,) * 2:
            try:
                backlog.require_room(who.id, 1)
                codes.append("")
            except Problem as problem:
                codes.append(problem.code)
    assert codes == ["", "", *["event_backlog_full"] * 3, "", "backlog_full"]
    # Not each time: whose events are refused is what the operator asks when the alert comes.
    assert [(line["event"], line["organization_id"], line["code"]) for line in logged] == [
        ("events_refused", str(organization.id), "event_backlog_full"),
        ("events_refused", str(other_organization.id), "backlog_full"),
    ]


def test_counting_stops_at_the_bound(organization: Organization) -> None:
    _accept(organization, 8)
    assert backlog.waiting_events(3) == 3
    assert backlog.waiting_events(100) == 8
    assert backlog.oldest_waiting_seconds() >= 0


def test_events_that_are_let_in_are_no_deliveries_yet(organization: Organization, settings: Any) -> None:
    settings.MAX_WAITING_DELIVERIES = 2
    for _ in range(5):
        backlog.require_room(organization.id, 2)


def test_a_count_that_took_long_is_used_for_many_times_as_long(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(backlog, "_FRESH_PER_SECOND_COUNTED", 0.0)
    backlog.require_room(organization.id, 1)
    monkeypatch.setattr(backlog, "_FRESH_PER_SECOND_COUNTED", 1e9)
    assert backlog.estimate.is_stale(organization.id)
    backlog.require_room(organization.id, 1)
    assert not backlog.estimate.is_stale(organization.id), "some microseconds, a billion times"


@pytest.mark.django_db(transaction=True)
def test_while_one_thread_counts_others_use_the_last_count(organization: Organization, settings: Any) -> None:
    settings.MAX_WAITING_EVENTS = 3
    with another_transaction() as other:
        other.execute("LOCK TABLE events_event IN ACCESS EXCLUSIVE MODE")

        def work(number: int) -> None:
            if number:
                wait_until_held_up(other, number)  # one after the other
            if number < 2:
                backlog.estimate.refresh(organization.id)
                return
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE %s = ANY (pg_blocking_pids(pid)) AND query LIKE '%%organization_id = %%'",
                    [other.info.backend_pid],
                )
                counting = cursor.fetchone()[0]
            assert backlog.estimate.add(organization.id, 3) is None
            other.rollback()
            assert counting == 1, "the second thread is at what no other one counts"

        in_threads(3, work)
    refused = backlog.estimate.add(organization.id, 1)
    assert refused is not None, "what was let in while others counted is in no count, and counts"
    assert refused.code == "event_backlog_full"


def test_what_is_refused_for_one_bound_is_not_counted_against_another(
    organization: Organization, other_organization: Organization, settings: Any
) -> None:
    settings.MAX_WAITING_EVENTS, settings.MAX_QUEUE_LENGTH = 2, 1
    backlog.require_room(other_organization.id, 1)
    for _ in range(4):
        with pytest.raises(Problem) as refused:
            backlog.require_room(organization.id, 1)
        assert refused.value.code == "backlog_full", "its own bound is far"


def test_a_count_is_recent_for_a_minute(organization: Organization, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not backlog.estimate.is_recent(organization.id)
    backlog.estimate.refresh(organization.id)
    assert backlog.estimate.is_recent(organization.id)
    monkeypatch.setattr(backlog, "_RECENT_SECONDS", 0.0)  # as if a minute had passed
    assert not backlog.estimate.is_recent(organization.id)
