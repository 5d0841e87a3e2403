"""The bound on what waits: nothing accepted is dropped for it, and it opens by itself."""

from __future__ import annotations

from typing import Any

import pytest

from events import backlog
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.api.helpers import assert_problem
from tests.webhooks.helpers import fan_out

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
    assert backlog.has_room(4)
    assert backlog.has_room(4)
    assert backlog.has_room(4)  # a batch may go over the edge; the next one may not
    assert not backlog.has_room(1)


def test_counting_stops_at_the_bound(organization: Organization) -> None:
    _accept(organization, 8)
    assert backlog.waiting_events(3) == 3
    assert backlog.waiting_events(100) == 8
    assert backlog.oldest_waiting_seconds() >= 0
