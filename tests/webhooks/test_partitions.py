"""Old partitions are dropped with all that is settled, new ones are made in time, and nobody waits long for either."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from core.ids import new_id
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import accept, make_past_partitions, result, subscribe
from tests.webhooks.transactions import another_transaction
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, DeliveryAttempt, Subscription
from webhooks.upkeep import partitions
from webhooks.upkeep.retention import Purge
from webhooks.upkeep.sweep import Sweep


def _sql(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def _periods() -> list[str]:
    return [row[0] for row in _sql("SELECT suffix FROM triggers_partitions() ORDER BY starts")]


def _partition_of(row: Event | Delivery) -> str:
    table = row._meta.db_table
    return str(_sql(f"SELECT tableoid::regclass FROM {table} WHERE id = %s", row.pk)[0][0]).removeprefix(f"{table}_")


def _old_event(organization: Organization, days: float, **values: Any) -> Event:
    """Make an event as it was made so many days ago."""
    at = timezone.now() - datetime.timedelta(days=days)
    time_part = int(at.timestamp() * 1000) << 80
    given = {"type": "a.b", "data": "{}", "status": "processed", **values}
    return Event.objects.create(
        id=uuid.UUID(int=time_part | new_id().int & ((1 << 80) - 1)), organization=organization, created_at=at, **given
    )


def _deliver(event: Event, subscription: Subscription, status: str = "delivered") -> Delivery:
    delivery = Delivery.objects.create(
        organization_id=event.organization_id, event=event, subscription=subscription, status=status, attempt_count=1
    )
    DeliveryAttempt.objects.create(
        delivery=delivery, number=1, cause="schedule", started_at=event.created_at, duration_ms=1
    )
    return delivery


@pytest.mark.django_db
def test_an_event_with_all_that_belongs_to_it_is_in_partitions_of_one_period(organization: Organization) -> None:
    make_past_partitions(number=8)
    event = _old_event(organization, 40)
    delivery = _deliver(event, subscribe(organization))
    period = _partition_of(event)
    assert period == _partition_of(delivery) in _periods()
    ((of_attempt,),) = _sql("SELECT tableoid::regclass::text FROM webhooks_deliveryattempt")
    assert of_attempt == f"webhooks_deliveryattempt_{period}"
    (now,) = accept(organization)
    assert _partition_of(Event.objects.get(id=now)) in _periods()


@pytest.mark.django_db
@pytest.mark.parametrize("unsettled", ["accepted", "error", "pending", "held", "delivering"])
def test_a_period_that_is_old_for_everybody_goes_and_what_is_unsettled_stays(
    organization: Organization, other_organization: Organization, unsettled: str
) -> None:
    make_past_partitions(number=8)
    periods = _periods()
    Organization.objects.filter(id=other_organization.id).update(retention_days=10)
    subscription, second = subscribe(organization), subscribe(organization)
    for days in (52, 50, 48, 1):
        for one in (organization, other_organization):
            _deliver(_old_event(one, days), subscription)
    stays = _old_event(organization, 50, status=unsettled if unsettled in {"accepted", "error"} else "processed")
    kept = {_deliver(stays, subscription).id, _deliver(stays, second, unsettled).id} if stays.status else set()
    Sweep(lambda: None).run()
    assert set(Event.objects.values_list("id", flat=True)) > {stays.id}
    left = set(_periods())
    assert left < set(periods)
    assert {_partition_of(event) for event in Event.objects.all()} <= {*left, "default"}
    assert _partition_of(Event.objects.get(id=stays.id)) == "default"
    assert set(Delivery.objects.filter(event=stays).values_list("id", flat=True)) == kept
    assert DeliveryAttempt.objects.filter(delivery_id__in=kept).count() == 2
    assert Event.objects.filter(created_at__gt=timezone.now() - datetime.timedelta(days=30)).count() == 2
    # It goes on as any other.
    if unsettled == "pending":
        (claimed,) = claim(10).deliveries
        record_results([result(claimed, 200)])
        assert Delivery.objects.get(id=claimed.delivery_id).status == "delivered"


@pytest.mark.django_db
def test_a_period_stays_as_long_as_one_organization_wants_it(
    organization: Organization, other_organization: Organization
) -> None:
    make_past_partitions(number=8)
    event = _old_event(organization, 50)
    Organization.objects.filter(id=other_organization.id).update(retention_days=60)
    assert partitions.drop_expired() == 0
    Organization.objects.filter(id=other_organization.id).update(retention_days=20)
    assert partitions.drop_expired() > 0
    assert not Event.objects.filter(id=event.id).exists()


@pytest.mark.django_db
def test_a_period_with_much_that_must_stay_is_left_to_the_purge(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_past_partitions(number=8)
    subscription = subscribe(organization)
    for status in ("held", "held", "delivered"):
        _deliver(_old_event(organization, 50), subscription, status)
    monkeypatch.setattr(partitions, "MOST_KEPT", 1)
    period = _partition_of(Event.objects.earliest("id"))
    partitions.drop_expired()
    assert period in _periods()
    assert Purge(patience=9).run().events == 1
    assert sorted(Delivery.objects.values_list("status", flat=True)) == ["held", "held"]


@pytest.mark.django_db
def test_the_purge_leaves_to_the_partitions_what_goes_with_them_soon(
    organization: Organization, other_organization: Organization
) -> None:
    make_past_partitions(number=8)
    Organization.objects.filter(id=other_organization.id).update(retention_days=10)
    for one in (organization, other_organization):
        _old_event(one, 32)
    assert Purge(patience=9).run().events == 1
    assert Event.objects.get().organization_id == organization.id
    assert Purge().run().events == 1, "the command deletes at once"


@pytest.mark.django_db
def test_periods_to_come_get_their_partitions_and_the_rows_that_came_before(
    organization: Organization, settings: Any
) -> None:
    subscription = subscribe(organization)
    periods = _periods()
    for table in ("events_event", "webhooks_delivery", "webhooks_deliveryattempt"):
        for period in periods[1:]:
            _sql(f"DROP TABLE {table}_{period}")
    late = _old_event(organization, -20)
    delivery = _deliver(late, subscription)
    assert _partition_of(late) == "default"
    settings.PARTITION_DAYS = 10
    Sweep(lambda: None).run()
    ends = _sql("SELECT max(ends) FROM triggers_partitions()")[0][0]
    assert ends > timezone.now() + datetime.timedelta(days=20)
    assert _partition_of(late) == _partition_of(delivery) in _periods()
    assert DeliveryAttempt.objects.count() == 1
    made = _periods()
    partitions.make_ahead()
    assert _periods() == made


@pytest.mark.django_db(transaction=True)
def test_neither_making_nor_dropping_waits_for_a_long_transaction_or_loses_anything(organization: Organization) -> None:
    make_past_partitions(number=8)
    periods = _periods()
    try:
        event = _old_event(organization, 50)
        with another_transaction() as other:
            other.execute("SELECT count(*) FROM events_event")
            Sweep(lambda: None).run()  # raises nothing
            assert _periods() == periods
            ingest(organization.id, NewEvent("a.b", "{}", None))  # nobody is left waiting
            other.rollback()
        assert Event.objects.filter(id=event.id).exists()
        partitions.look_after()
        assert not Event.objects.filter(id=event.id).exists()
        assert len(_periods()) < len(periods)
    finally:
        for period in _periods():
            if period < periods[8]:
                for table in ("events_event", "webhooks_delivery", "webhooks_deliveryattempt"):
                    _sql(f"DROP TABLE {table}_{period}")


@pytest.mark.django_db(transaction=True)
def test_a_partition_is_made_while_others_write(organization: Organization) -> None:
    last = _periods()[-1]
    for table in ("events_event", "webhooks_delivery", "webhooks_deliveryattempt"):
        _sql(f"DROP TABLE {table}_{last}")
    with another_transaction() as other:
        other.execute(
            "INSERT INTO events_event (id, organization_id, type, data, status, failed_attempts, last_error)"
            " VALUES (%s, %s, 'a.b', '{}', 'accepted', 0, '')",
            [new_id(), organization.id],
        )
        partitions.make_ahead()
        other.commit()
    assert _periods()[-1] == last
    assert Event.objects.count() == 1
