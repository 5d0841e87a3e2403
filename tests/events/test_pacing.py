"""Accepting goes at the pace of the workers, for the organization that is ahead of them, and only while they work."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
from django.utils import timezone

from devstack.waiting import wait_until
from events import pacing
from events.ingest import ingest
from events.lagging import NOTE_SECONDS, lagging_among, note_lagging
from events.models import Event
from events.pacing import FIRST_SECONDS, LONGEST_SECONDS, LOOK_SECONDS, STOPPED_SECONDS, Pacing
from events.payload import NewEvent
from orgs.models import Organization
from webhooks.routing.fan_out import FanOut

pytestmark = pytest.mark.django_db(transaction=True)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


def _accept_late(organization: Organization, events: int = 1) -> None:
    """Accept events that have been due for a minute and more, each at a time of its own."""
    for number in range(events):
        event = ingest(organization.id, NewEvent("a.b", "{}", None)).event_id
        due_at = timezone.now() - datetime.timedelta(seconds=60 + events - number)
        Event.objects.filter(pk=event).update(due_at=due_at, created_at=due_at)


def test_an_organization_whose_events_wait_is_slowed_down_until_they_are_fanned_out(
    organization: Organization, other_organization: Organization, clock: Clock
) -> None:
    paces = Pacing(clock=clock)
    _accept_late(organization, 40)
    ingest(other_organization.id, NewEvent("a.b", "{}", None))
    Event.objects.filter(organization=other_organization).update(due_at=timezone.now() + datetime.timedelta(hours=1))
    pauses = []
    for _ in range(30):
        paces.look()
        pauses.append(paces.pause(organization.id))
        Event.objects.filter(pk=Event.objects.filter(status="accepted").earliest("due_at").pk).update(
            status="processed"
        )
        clock.now += LOOK_SECONDS
    assert pauses[:3] == [FIRST_SECONDS, FIRST_SECONDS * 1.5, FIRST_SECONDS * 1.5**2]
    assert pauses[-1] == LONGEST_SECONDS
    assert paces.pause(other_organization.id) == 0
    fan_out = FanOut()
    while fan_out.run_round(1000).seen:
        pass
    for _ in range(10):
        paces.look()
    assert paces.pause(organization.id) == 0


def test_where_no_fan_out_goes_on_nobody_is_slowed_down(organization: Organization, clock: Clock) -> None:
    paces = Pacing(clock=clock)
    _accept_late(organization)
    for _ in range(30):
        paces.look()
    assert paces.pause(organization.id) == LONGEST_SECONDS
    clock.now += STOPPED_SECONDS
    for _ in range(10):
        paces.look()
    assert paces.pause(organization.id) == 0
    _accept_late(organization, 2)  # another one is the oldest now, as after a fan-out
    paces.look()
    assert paces.pause(organization.id) == FIRST_SECONDS


def test_a_pause_from_long_ago_delays_nobody(organization: Organization, clock: Clock) -> None:
    paces = Pacing(clock=clock)
    _accept_late(organization)
    paces.look()
    assert paces.pause(organization.id) == FIRST_SECONDS
    clock.now += 3600
    assert paces.pause(organization.id) == 0


def test_a_process_looks_now_and_then(clock: Clock) -> None:
    paces = Pacing(clock=clock)
    assert [paces.wants_look(), paces.wants_look()] == [True, False]
    clock.now += LOOK_SECONDS
    assert [paces.wants_look(), paces.wants_look()] == [True, False]


def test_looks_take_turns_between_more_organizations_than_one_sees(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(pacing, "ORGANIZATIONS_AT_A_TIME", 3)
    everybody = [Organization.objects.create(name=f"Org {number}") for number in range(7)]
    for each in everybody:
        _accept_late(each)
    paces = Pacing(clock=clock)
    seen: list[set[uuid.UUID]] = []
    for _ in range(3):
        before = {each.id for each in everybody if paces.pause(each.id)}
        paces.look()
        seen.append({each.id for each in everybody if paces.pause(each.id)} - before)
    assert [len(ids) for ids in seen] == [3, 3, 1]
    Event.objects.update(status="processed")
    for _ in range(10):
        paces.look()
    assert not any(paces.pause(each.id) for each in everybody)


DELIVERED = 100.0


def _looks(paces: Pacing, clock: Clock, organization: Organization, events_per_second: float) -> list[float]:
    """Send events at a rate for four seconds, whatever the pauses; return them."""
    pauses = []
    for _ in range(int(4 / LOOK_SECONDS)):
        pauses.append(paces.pause(organization.id, int(events_per_second * LOOK_SECONDS)))
        clock.now += LOOK_SECONDS
        paces.look()
    return pauses


def test_an_organization_that_outruns_its_deliveries_is_slowed_down_until_they_no_longer_lag(
    organization: Organization, other_organization: Organization, clock: Clock, settings: Any
) -> None:
    settings.WEB_CONCURRENCY = 2
    lagging = {organization.id: DELIVERED}
    paces = Pacing(find_lagging=lambda asked: {key: lagging[key] for key in asked if key in lagging}, clock=clock)
    pauses = _looks(paces, clock, organization, 200.0)
    assert pauses[0] == 0
    assert pauses[-1] > LONGEST_SECONDS - 2 * LOOK_SECONDS
    assert set(_looks(paces, clock, other_organization, 200.0)) == {0}
    assert _looks(paces, clock, organization, 200.0)[-1] > LONGEST_SECONDS - 2 * LOOK_SECONDS
    lagging.clear()
    assert _looks(paces, clock, organization, 200.0)[-1] == 0


def test_requests_that_come_together_are_stored_at_half_the_rate_of_the_deliveries(
    organization: Organization, clock: Clock, settings: Any
) -> None:
    settings.WEB_CONCURRENCY = 2
    paces = Pacing(find_lagging=lambda asked: dict.fromkeys(asked, DELIVERED), clock=clock)
    paces.pause(organization.id, 1000)
    clock.now += LOOK_SECONDS
    paces.look()
    between = 1 / (DELIVERED / 2 / 2)
    assert [paces.pause(organization.id) for _ in range(4)] == pytest.approx([0, between, 2 * between, 3 * between])
    clock.now += 2 * between
    assert paces.pause(organization.id, 2) == pytest.approx(2 * between)
    assert paces.pause(organization.id) == pytest.approx(4 * between)
    assert [paces.pause(organization.id, 1000) for _ in range(3)][-1] == pytest.approx(LONGEST_SECONDS)


def test_who_is_slowed_down_stays_so_while_the_deliveries_lag(
    organization: Organization, clock: Clock, settings: Any
) -> None:
    settings.WEB_CONCURRENCY = 1
    paces = Pacing(find_lagging=lambda asked: dict.fromkeys(asked, DELIVERED), clock=clock)
    _looks(paces, clock, organization, 200.0)
    assert _looks(paces, clock, organization, 0.0)[-1] == 0  # nothing comes that would have to wait
    paces.pause(organization.id)
    assert paces.pause(organization.id) > 0


@pytest.mark.parametrize(("processes", "events", "is_paced"), [(1, 40, False), (1, 60, True), (2, 40, True)])
def test_who_sends_less_than_half_of_what_is_delivered_is_not_slowed_down(
    organization: Organization, clock: Clock, settings: Any, processes: int, events: float, is_paced: bool
) -> None:
    settings.WEB_CONCURRENCY = processes
    paces = Pacing(find_lagging=lambda asked: dict.fromkeys(asked, DELIVERED), clock=clock)
    assert (max(_looks(paces, clock, organization, events)) > 0) is is_paced


def test_workers_note_who_lags_for_a_moment(organization: Organization, other_organization: Organization) -> None:
    asked = [organization.id, other_organization.id]
    assert lagging_among(asked) == {}
    note_lagging({organization.id: 123.4})
    assert lagging_among(asked) == {organization.id: 123}
    assert lagging_among([]) == {}
    wait_until(lambda: not lagging_among(asked), "the note is never forgotten", 20 * NOTE_SECONDS)
