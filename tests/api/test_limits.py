"""Limits answer honestly: 429 and 503 say when to come back, nothing is stored, and it passes."""

from __future__ import annotations

import re
import threading
import uuid
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django_redis import get_redis_connection
from pytest_django import Settings

from core import redis as core_redis
from devstack.waiting import wait_until
from events import backlog
from events.models import Event
from orgs.models import Organization
from tests.api.helpers import assert_problem
from tests.webhooks.helpers import fan_out_batch, subscribe
from webhooks.models import Delivery, Subscription

GOOD = {"type": "a", "data": 1}
LIMIT = re.compile(r'"events";r=(\d+);t=(\d+)')


@pytest.fixture
def limited(organization: Organization) -> Organization:
    """Return the organization with a rate of 5 events a minute."""
    organization.events_per_minute = 5
    organization.save()
    return organization


def test_the_rate_is_told_with_every_answer_and_over_it_is_429(api: Any, limited: Organization) -> None:
    left = []
    for _ in range(5):
        answer = api.post("/api/events", GOOD)
        assert answer.status_code == 202
        assert answer["RateLimit-Policy"] == '"events";q=5;w=60'
        match = LIMIT.fullmatch(answer["RateLimit"])
        assert match
        assert 0 <= int(match[2]) <= 60
        left.append(int(match[1]))
    assert left == [4, 3, 2, 1, 0]
    answer = api.post("/api/events", GOOD)
    problem = assert_problem(answer, 429)
    assert problem["code"] == "rate_limited"
    assert "5 events a minute" in problem["detail"]
    assert 1 <= int(answer["Retry-After"]) <= 60
    assert LIMIT.fullmatch(answer["RateLimit"])
    assert Event.objects.count() == 5


def test_the_rate_ends_with_its_minute(api: Any, limited: Organization) -> None:
    for _ in range(5):
        api.post("/api/events", GOOD)
    assert_problem(api.post("/api/events", GOOD), 429)
    connection = get_redis_connection("default")
    keys = [key for key in connection.keys("*") if str(limited.id).encode() in key]
    assert keys
    assert all(0 < connection.ttl(key) <= 61 for key in keys)  # no count outlives its minute, whatever crashes
    connection.delete(*keys)
    assert api.post("/api/events", GOOD).status_code == 202


def test_the_rate_is_the_organization_s_not_the_key_s_and_nobody_else_s(
    api: Any, other_api: Any, limited: Organization
) -> None:
    second = api.post("/api/keys", {"name": "second"}).json()["key"]
    for number in range(5):
        assert api.post("/api/events", GOOD, **({"X-API-Key": second} if number % 2 else {})).status_code == 202
    assert_problem(api.post("/api/events", GOOD, **{"X-API-Key": second}), 429)
    assert other_api.post("/api/events", GOOD).status_code == 202
    assert api.get("/api/events").status_code == 200


def test_a_batch_counts_as_many_events_as_it_holds_and_passes_whole_or_not_at_all(
    api: Any, limited: Organization
) -> None:
    answer = api.post("/api/events/batch", [GOOD] * 3)
    assert LIMIT.fullmatch(answer["RateLimit"])[1] == "2"
    refused = api.post("/api/events/batch", [GOOD] * 3)
    assert_problem(refused, 429)
    assert int(refused["Retry-After"]) >= 1
    assert Event.objects.count() == 3
    assert api.post("/api/events/batch", [GOOD] * 2).status_code == 202  # the refusal used nothing up
    assert_problem(api.post("/api/events", GOOD), 429)


def test_a_batch_that_no_minute_can_hold_is_told_so(api: Any, limited: Organization) -> None:
    answer = api.post("/api/events/batch", [GOOD] * 6)
    problem = assert_problem(answer, 413)
    assert (problem["code"], problem["limit_events"]) == ("too_many_events", 5)
    assert "Retry-After" not in answer
    assert api.post("/api/events/batch", [GOOD] * 5).status_code == 202


def test_invalid_events_use_nothing_up(api: Any, limited: Organization) -> None:
    for _ in range(6):
        assert_problem(api.post("/api/events", {"type": ""}), 400)
        assert api.post("/api/events/batch", [{"type": ""}]).status_code == 200
    assert api.post("/api/events", GOOD).status_code == 202


def test_without_a_rate_no_header_tells_one(api: Any, organization: Organization) -> None:
    organization.events_per_minute = 0
    organization.save()
    answer = api.post("/api/events", GOOD)
    assert answer.status_code == 202
    assert "RateLimit" not in answer
    assert "RateLimit-Policy" not in answer


def test_the_rate_holds_within_the_process_while_redis_is_away(api: Any, limited: Organization) -> None:
    core_redis.breaker.open(60)  # as after a failure; the next test forgets it
    answers = [api.post("/api/events", GOOD).status_code for _ in range(7)]
    assert answers == [202] * 5 + [429] * 2


def test_failed_authentications_are_throttled_by_address_and_good_keys_still_pass(api: Any, settings: Settings) -> None:
    settings.AUTH_FAILURES_PER_MINUTE = 3
    settings.TRUSTED_PROXIES = 1
    good, api.key = api.key, "trk_nonsense_nonsense"
    first = {"X-Forwarded-For": "203.0.113.1"}
    assert [api.get("/api/me", **first).status_code for _ in range(3)] == [401] * 3
    answer = api.get("/api/me", **first)
    assert assert_problem(answer, 429)["code"] == "too_many_failures"
    assert int(answer["Retry-After"]) >= 1
    assert_problem(api.get("/api/me", **{"X-Forwarded-For": "203.0.113.1, 203.0.113.2"}), 401)
    api.key = good
    assert api.get("/api/me", **first).status_code == 200


def test_over_the_backlog_s_bound_is_503_and_it_passes_when_workers_catch_up(
    api: Any, subscription: Subscription, settings: Settings
) -> None:
    """What is refused for want of room uses up none of the rate."""
    settings.MAX_QUEUE_LENGTH = 3
    Organization.objects.update(events_per_minute=1000)
    for _ in range(3):
        assert api.post("/api/events", GOOD).status_code == 202
    answer = api.post("/api/events", GOOD)
    problem = assert_problem(answer, 503)
    assert problem["code"] == "backlog_full"
    assert int(answer["Retry-After"]) >= 1
    assert_problem(api.post("/api/events/batch", [GOOD]), 503)
    assert Event.objects.count() == 3
    assert api.get("/api/events").status_code == 200
    assert fan_out_batch(10) == 3
    answer = wait_until(lambda: (sent := api.post("/api/events", GOOD)).status_code == 202 and sent)
    assert Event.objects.count() == 4
    assert ";r=996;" in answer["RateLimit"]


def test_finished_events_are_no_backlog_however_many_there_are(
    api: Any, organization: Organization, settings: Settings
) -> None:
    settings.MAX_QUEUE_LENGTH = 3
    Event.objects.bulk_create(
        Event(organization=organization, type="a", data="1", status=status)
        for status in ("processed", "error")
        for _ in range(10)
    )
    backlog.estimate.reset()
    assert api.post("/api/events", GOOD).status_code == 202


def test_the_bound_holds_within_the_second_that_a_count_is_kept(api: Any, settings: Settings) -> None:
    settings.MAX_QUEUE_LENGTH = 10
    statuses = [api.post("/api/events", GOOD).status_code for _ in range(14)]
    # What is accepted during a count may be in it twice, so that one or two fewer fit.
    accepted = statuses.count(202)
    assert statuses == [202] * accepted + [503] * (14 - accepted)
    assert 8 <= accepted <= 10


def _waits_for_a_lock(cursor: Any) -> bool:
    cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return bool(cursor.fetchone()[0])


@pytest.mark.django_db(transaction=True)
def test_what_is_accepted_during_a_count_is_not_forgotten(settings: Settings) -> None:
    """An event is added before it is committed, so a count that ends afterward may not have it."""
    settings.MAX_WAITING_EVENTS = 2
    estimate, organization_id = backlog.BacklogEstimate(), uuid.uuid4()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE events_event IN ACCESS EXCLUSIVE MODE")
        counting = threading.Thread(target=lambda: (estimate.refresh(organization_id), connections.close_all()))
        counting.start()
        wait_until(lambda: _waits_for_a_lock(cursor), "the count doesn't begin")
        assert estimate.add(organization_id, 2) is None
    counting.join(30)
    problem = estimate.add(organization_id, 1)
    assert problem is not None
    assert problem.code == "event_backlog_full"


def test_an_organization_over_its_share_of_waiting_events_is_refused_and_its_neighbor_is_not(
    api: Any, other_api: Any, organization: Organization, other_organization: Organization, settings: Settings
) -> None:
    for one in (organization, other_organization):
        subscribe(one)
    settings.MAX_WAITING_EVENTS = 3
    for _ in range(3):
        assert api.post("/api/events", GOOD).status_code == 202
    answer = api.post("/api/events", GOOD)
    problem = assert_problem(answer, 429)
    assert problem["code"] == "event_backlog_full"
    assert problem["limit_events"] == 3
    assert "MAX_WAITING_EVENTS" in problem["detail"]
    assert int(answer["Retry-After"]) >= 1
    assert_problem(api.post("/api/events/batch", [GOOD]), 429)
    assert other_api.post("/api/events", GOOD).status_code == 202
    assert Event.objects.count() == 4
    assert fan_out_batch(10) == 4
    wait_until(lambda: api.post("/api/events", GOOD).status_code == 202, "the events stay")


def test_an_organization_over_its_bound_on_deliveries_is_refused_and_its_neighbor_is_not(
    api: Any, other_api: Any, organization: Organization, settings: Settings
) -> None:
    settings.MAX_WAITING_DELIVERIES = 4
    subscription = subscribe(organization)
    for status, count in (("pending", 2), ("held", 2), ("delivered", 5), ("failed", 5), ("cancelled", 5)):
        for _ in range(count):
            event = Event.objects.create(organization=organization, type="a", data="1", status="processed")
            Delivery.objects.create(organization=organization, subscription=subscription, event=event, status=status)
    answer = api.post("/api/events", GOOD)
    problem = assert_problem(answer, 429)
    assert problem["code"] == "delivery_backlog_full"
    assert problem["limit_deliveries"] == 4
    assert "MAX_WAITING_DELIVERIES" in problem["detail"]
    assert int(answer["Retry-After"]) >= 1
    assert other_api.post("/api/events", GOOD).status_code == 202
    Delivery.objects.filter(status="held").update(status="delivered")
    backlog.estimate.reset()  # a while later
    assert api.post("/api/events", GOOD).status_code == 202
