"""Retry, replay, hold and resume: what an operator may do to deliveries, and what nobody may."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
from django.db.models.functions import Now

from orgs.models import Organization
from tests.webhooks.helpers import accept, lane_of, result, statuses, subscribe
from webhooks import repair, subscriptions
from webhooks.claiming import claim
from webhooks.models import Delivery, Lane
from webhooks.recording import record
from webhooks.repair import Repair

pytestmark = pytest.mark.django_db

STATES = ["pending", "delivering", "delivered", "failed", "held", "cancelled"]


def _one(organization: Organization, state: str) -> Delivery:
    subscribe(organization)
    accept(organization)
    if state == "delivering":
        claim(1)
    else:
        settled = state in ("delivered", "failed", "cancelled")
        Delivery.objects.update(status=state, completed_at=Now() if settled else None, tries_used=3 if settled else 0)
    return Delivery.objects.get()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("what", list(Repair))
def test_each_repair_changes_what_it_is_for_and_leaves_everything_else(
    organization: Organization, what: Repair, state: str
) -> None:
    delivery = _one(organization, state)
    changed = repair.apply(what, [delivery.id])
    assert changed == (1 if state in what.states else 0)
    delivery.refresh_from_db()
    expected = state if not changed else "held" if what is Repair.HOLD else "pending"
    assert delivery.status == expected
    if changed and what is not Repair.HOLD:
        assert delivery.completed_at is None
        assert len(claim(10).deliveries) == 1


@pytest.mark.parametrize("how", ["disable", "delete"])
@pytest.mark.parametrize("what", [Repair.RETRY, Repair.REPLAY, Repair.RESUME])
def test_nothing_is_made_due_for_a_subscription_that_takes_no_deliveries(
    organization: Organization, what: Repair, how: str
) -> None:
    delivery = _one(organization, "failed")
    subscription = delivery.subscription
    (subscriptions.disable if how == "disable" else subscriptions.delete)(subscription)
    Delivery.objects.update(status=what.states[-1])
    assert repair.apply(what, [delivery.id]) == 0
    assert claim(10).deliveries == []


def test_a_retry_is_one_more_try_and_a_replay_a_whole_schedule(organization: Organization, settings: Any) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 5.0, 5.0)
    for what, tries in ((Repair.RETRY, 1), (Repair.REPLAY, 3)):
        subscribe(organization)
        (event,) = accept(organization)
        delivery = Delivery.objects.filter(event_id=event).order_by("-id")[0]
        Delivery.objects.exclude(id=delivery.id).update(status="cancelled")
        Delivery.objects.filter(id=delivery.id).update(status="failed", tries_used=3)
        repair.apply(what, [delivery.id])
        made = 0
        causes = []
        while Delivery.objects.get(id=delivery.id).status == "pending":
            Delivery.objects.filter(id=delivery.id).update(next_attempt_at=Now())
            Lane.objects.update(next_due_at=Now(), paused_until=None)
            (claimed,) = claim(10).deliveries
            causes.append(claimed.cause)
            record([result(claimed, 500)])
            made += 1
        assert made == tries
        assert causes[0] == ("manual" if what is Repair.RETRY else "replay")
        assert statuses(id=delivery.id) == ["failed"]


def test_a_retry_goes_past_an_open_circuit_and_a_replay_waits_for_it(organization: Organization) -> None:
    delivery = _one(organization, "failed")
    Lane.objects.update(paused_until=Now() + datetime.timedelta(hours=1), circuit_opened=2, window_size=1)
    repair.apply(Repair.REPLAY, [delivery.id])
    assert claim(10).deliveries == []
    repair.apply(Repair.RETRY, [delivery.id])
    assert lane_of(delivery.subscription).paused_until is None
    assert len(claim(10).deliveries) == 1


def test_a_delivery_that_is_held_by_hand_waits_until_it_is_resumed(organization: Organization) -> None:
    delivery = _one(organization, "pending")
    assert repair.apply(Repair.HOLD, [delivery.id]) == 1
    assert claim(10).deliveries == []
    accept(organization)
    assert len(claim(10).deliveries) == 1
    assert repair.apply(Repair.RESUME, [delivery.id]) == 1
    assert [c.delivery_id for c in claim(10).deliveries] == [delivery.id]


def test_no_ids_and_unknown_ids_are_no_error(organization: Organization) -> None:
    for what in Repair:
        assert repair.apply(what, []) == 0
        assert repair.apply(what, [uuid.uuid4()]) == 0
