"""The sender: due deliveries go out signed, many at a time, and nothing of it is lost when it stops."""

from __future__ import annotations

import datetime
import threading
import time
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from standardwebhooks import Webhook

from devstack.http_receiver import Received, Receiver, Response
from devstack.waiting import wait_until
from events.ingest import ingest
from events.lagging import lagging_among
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import accept, fan_out, queue_of, sending, statuses, subscribe
from webhooks import subscriptions
from webhooks.dispatch import claim_loop, recorder
from webhooks.dispatch.lagging import LaggingNotes
from webhooks.dispatch.sender import Sender
from webhooks.models import Delivery, DeliveryAttempt, SubscriptionQueue

pytestmark = pytest.mark.django_db(transaction=True)


class Gate:
    """A receiver's behavior that answers when it is opened."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.arrived = threading.Event()

    def __call__(self, request: Received, number: int) -> Response:
        self.arrived.set()
        return Response(self.status, delay=0.7)


def test_what_is_sent_is_what_the_producer_sent_signed_and_named(
    organization: Organization, receiver: Receiver
) -> None:
    _, secret = subscriptions.create(
        organization.id, url=receiver.url("/hook?a=b"), event_types=["*"], headers={"X-Token": "t", "Accept": "x/y"}
    )
    data = '{"b": 1.00, "a": 12345678901234567890123, "s": "\\u00e9\\/"}'
    event = ingest(organization.id, NewEvent("order.created", data, None)).event_id
    fan_out()
    with sending():
        (request,) = receiver.wait_for(1)
    assert request.path == "/hook?a=b"
    assert data.encode() in request.body
    Webhook(secret).verify(request.body, request.headers)
    assert request.headers["webhook-id"] == str(event)
    assert request.headers["content-type"] == "application/json"
    assert (request.headers["x-token"], request.headers["accept"]) == ("t", "x/y")


def test_on_busy_processors_results_that_come_close_together_are_recorded_together(
    organization: Organization, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "processors_are_busy", lambda: True)
    monkeypatch.setattr(recorder, "GATHER_FROM", 1)
    monkeypatch.setattr(recorder, "GATHER_SECONDS", 2.0)
    receiver.behavior = lambda request, number: Response(delay=0.2 * number)
    subscribe(organization, receiver.url())
    with sending() as sender, connection.cursor() as cursor:
        for posted, recorded in ((1, 1), (2, 3)):
            accept(organization, posted)
            sender.wake()
            wait_until(lambda wanted=recorded: DeliveryAttempt.objects.count() == wanted, "an attempt isn't recorded")
        cursor.execute("SELECT count(*) FROM webhooks_deliveryattempt GROUP BY xmin::text ORDER BY 1")
        assert cursor.fetchall() == [(1,), (2,)]


@pytest.mark.parametrize("are_busy", [True, False])
def test_a_sender_whose_processors_are_busy_notes_whose_deliveries_lag(
    organization: Organization, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, are_busy: bool
) -> None:
    monkeypatch.setattr(claim_loop, "LaggingNotes", lambda in_flight: LaggingNotes(in_flight, lambda: are_busy))
    noted: list[bool] = []

    def answer(_: Received, number: int) -> Response:
        noted.append(bool(lagging_among([organization.id])))
        return Response(200, delay=0.03)

    receiver.behavior = answer
    queue = queue_of(subscribe(organization, receiver.url()))
    SubscriptionQueue.objects.filter(pk=queue.pk).update(concurrency_window=2)
    accept(organization, 40)
    fan_out()
    due_at = Now() - datetime.timedelta(minutes=1)
    Delivery.objects.update(next_attempt_at=due_at)
    SubscriptionQueue.objects.update(next_due_at=due_at)
    with sending():
        receiver.wait_for(40)
    assert any(noted) is are_busy


def test_no_transaction_is_open_while_a_request_is_on_the_wire(organization: Organization, receiver: Receiver) -> None:
    receiver.behavior = lambda request, number: Response(delay=60)
    subscribe(organization, receiver.url())
    accept(organization)

    def nothing_is_open() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND xact_start IS NOT NULL"
            )
            return cursor.fetchone()[0] == 0

    with sending(poll_seconds=60):
        receiver.wait_for(1)
        wait_until(nothing_is_open)
        assert statuses() == ["delivering"]


def test_a_slow_receiver_holds_up_none_of_the_event_s_other_receivers(
    organization: Organization, receiver: Receiver
) -> None:
    def behave(request: Received, number: int) -> Response:
        return Response(delay=30.0 if request.path == "/slow" else 0.0)

    receiver.behavior = behave
    slow = subscribe(organization, receiver.url("/slow"))
    quick = [subscribe(organization, receiver.url(f"/quick/{n}")) for n in range(3)]
    with sending():
        accept(organization, 20)
        for subscription in quick:
            wait_until(lambda s=subscription: statuses(subscription=s) == ["delivered"] * 20)  # type: ignore[misc]
        assert set(statuses(subscription=slow)) == {"pending", "delivering"}
        assert queue_of(slow).in_flight <= queue_of(slow).concurrency_window


def test_receivers_that_worked_and_then_all_hang_leave_places_for_a_healthy_one(
    organization: Organization, receiver: Receiver
) -> None:
    receiver.behavior = lambda request, number: Response(delay=0 if request.path == "/healthy" else 60)
    hanging = [subscribe(organization, receiver.url("/hangs"), event_types=["old.*"]) for _ in range(3)]
    healthy = subscribe(organization, receiver.url("/healthy"), event_types=["new.*"])
    SubscriptionQueue.objects.update(concurrency_window=256)  # they have answered well for a while
    accept(organization, 60, kind="old.one")
    with sending(capacity=40):
        # Each takes what it may: a quarter of what its organization may take, which is three quarters of the worker.
        wait_until(lambda: [queue_of(subscription).in_flight for subscription in hanging] == [7, 7, 7])
        accept(organization, 20, kind="new.one")
        wait_until(lambda: statuses(subscription=healthy) == ["delivered"] * 20)
        assert [queue_of(subscription).in_flight for subscription in hanging] == [7, 7, 7]
        assert not DeliveryAttempt.objects.filter(delivery__subscription__in=hanging).exists()


def test_no_host_has_more_requests_at_a_time_than_it_may(
    organization: Organization, receiver: Receiver, settings: Any
) -> None:
    settings.MAX_CONNECTIONS_PER_HOST = 6
    receiver.behavior = lambda request, number: Response(delay=60)
    hanging = [subscribe(organization, receiver.url(f"/{number}")) for number in range(3)]
    with Receiver() as other, sending():
        healthy = subscribe(organization, other.url())
        accept(organization, 20)
        wait_until(lambda: statuses(subscription=healthy) == ["delivered"] * 20)
        receiver.wait_for(6)
        assert [queue_of(subscription).in_flight for subscription in hanging] == [2, 2, 2]
        assert receiver.connections == 6


def test_a_place_comes_free_with_its_result(organization: Organization, receiver: Receiver) -> None:
    subscribe(organization, receiver.url())
    SubscriptionQueue.objects.update(concurrency_window=256)
    accept(organization, 300)
    # Half of six places at a time, a hundred times over: a place that stayed taken would stop it.
    with sending(capacity=6, poll_seconds=60):
        wait_until(lambda: statuses() == ["delivered"] * 300)


def test_stopping_lets_what_is_in_flight_finish_and_gives_the_rest_back_at_once(
    organization: Organization, receiver: Receiver
) -> None:
    gate = receiver.behavior = Gate()
    subscription = subscribe(organization, receiver.url())
    accept(organization, 30)
    with sending(grace_seconds=30):
        assert gate.arrived.wait(30)
    done = Delivery.objects.filter(status="delivered").count()
    assert done == receiver.count >= 1
    assert statuses() == ["delivered"] * done + ["pending"] * (30 - done)
    assert queue_of(subscription).in_flight == 0


def test_what_is_not_done_within_the_grace_is_released_and_not_left_to_its_lease(
    organization: Organization, receiver: Receiver
) -> None:
    receiver.behavior = lambda request, number: Response(delay=60)
    subscription = subscribe(organization, receiver.url())
    accept(organization, 3)
    with sending(grace_seconds=0.1):
        receiver.wait_for(3)
    assert statuses() == ["pending"] * 3
    assert queue_of(subscription).in_flight == 0
    assert not Delivery.objects.exclude(lease_id=None).exists()


def test_a_sender_holds_no_more_than_its_capacity(organization: Organization, receiver: Receiver) -> None:
    receiver.behavior = lambda request, number: Response(delay=0.05)
    for _ in range(5):
        subscribe(organization, receiver.url())
    accept(organization, 10)
    SubscriptionQueue.objects.update(concurrency_window=100)
    most = 0
    with sending(capacity=7):
        while statuses() != ["delivered"] * 50:
            most = max(most, Delivery.objects.filter(status="delivering").count())
            time.sleep(0.005)
    assert most <= 7


def test_delivery_can_be_switched_off_and_keeps_everything_pending(
    organization: Organization, receiver: Receiver, settings: Any
) -> None:
    settings.DISABLE_WEBHOOK_DELIVERY = True
    subscribe(organization, receiver.url())
    with sending() as sender:
        accept(organization, 3)
        sender.wake()
        assert sender.wait_until_drained(30)
        assert statuses() == ["pending"] * 3
        settings.DISABLE_WEBHOOK_DELIVERY = False
        sender.wake()
        wait_until(lambda: statuses() == ["delivered"] * 3)


def test_without_a_wake_up_the_sender_looks_by_itself(organization: Organization, receiver: Receiver) -> None:
    subscribe(organization, receiver.url())
    with sending() as sender:
        assert sender.wait_until_drained(30)
        accept(organization)  # nobody tells the sender
        wait_until(lambda: statuses() == ["delivered"])


def test_a_sender_that_is_drained_says_so_and_can_be_stopped_twice(
    organization: Organization, receiver: Receiver
) -> None:
    subscribe(organization, receiver.url())
    accept(organization, 10)
    sender = Sender(50, 60.0)
    sender.start()
    sender.wake()
    assert sender.wait_until_drained(30)
    assert statuses() == ["delivered"] * 10
    sender.stop(1)
    assert not sender.is_alive
    sender.stop(1)
    sender.wake()


def test_a_sender_is_not_drained_while_a_result_makes_room_for_the_next(
    organization: Organization, receiver: Receiver, settings: Any
) -> None:
    settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION = 1
    subscribe(organization, receiver.url())
    for posted in range(100, 700, 100):
        accept(organization, 100)
        with sending(poll_seconds=60.0) as sender:
            sender.wake()
            assert sender.wait_until_drained(60)
            assert statuses() == ["delivered"] * posted


def test_a_result_that_the_database_refuses_stops_no_other_of_its_sender(
    organization: Organization, receiver: Receiver
) -> None:
    receiver.behavior = lambda request, number: Response(418 if request.path == "/poison" else 200)
    poison = subscribe(organization, receiver.url("/poison"))
    good = subscribe(organization, receiver.url("/good"))
    with connection.cursor() as cursor:
        cursor.execute(
            "ALTER TABLE webhooks_deliveryattempt ADD CONSTRAINT poison"
            " CHECK (status_code IS DISTINCT FROM 418) NOT VALID"
        )
    try:
        with sending():
            accept(organization, 30)
            wait_until(lambda: statuses(subscription=good) == ["delivered"] * 30)
            assert DeliveryAttempt.objects.filter(delivery__subscription=good).count() == 30
            assert "delivered" not in statuses(subscription=poison)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE webhooks_deliveryattempt DROP CONSTRAINT poison")
