"""New deliveries go straight from the fan-out to the sender, as bounded and as safe as by a claim."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from structlog.testing import capture_logs

from core.db import borrow_connection
from devstack.http_receiver import Received, Receiver, Response
from devstack.waiting import wait_until
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import queue_of, statuses, subscribe
from webhooks import subscriptions
from webhooks.dispatch.claim import Occupancy
from webhooks.dispatch.hand_over import MOST_DELIVERIES, SenderHandOver
from webhooks.dispatch.sender import Sender
from webhooks.dispatch.sender_shares import share_places
from webhooks.models import Delivery, DeliveryAttempt, Subscription, SubscriptionQueue
from webhooks.routing.fan_out import FanOut, Round
from webhooks.routing.insert import NewDeliveries
from webhooks.routing.sender_interface import QueueDemand

pytestmark = pytest.mark.django_db(transaction=True)


def accept(organization: Organization, count: int = 1) -> list[uuid.UUID]:
    """Accept events and leave them to a fan-out."""
    return [ingest(organization.id, NewEvent("a.b", str(number), None)).event_id for number in range(count)]


@pytest.fixture
def sender() -> Iterator[Sender]:
    """Return a sender that claims nothing by itself: what it sends was handed over."""
    running = _start(capacity=100)
    yield running
    running.stop(0)


def _start(capacity: int) -> Sender:
    running = Sender(capacity, poll_seconds=3600)
    running.start()
    assert running.wait_until_drained(30)  # its first claim is over
    return running


def run_round(sender: Sender) -> Round:
    return FanOut().run_round(1000, hand_over=SenderHandOver(sender))


def test_an_event_is_sent_without_a_claim(organization: Organization, receiver: Receiver, sender: Sender) -> None:
    subscription = subscribe(organization, receiver.url())
    (event,) = accept(organization)
    result = run_round(sender)
    assert (result.seen, result.left_to_claims) == (1, False)
    (request,) = receiver.wait_for(1)
    assert request.headers["webhook-id"] == str(event)
    wait_until(lambda: statuses() == ["delivered"], "it isn't recorded")
    queue = queue_of(subscription)
    assert (queue.in_flight, queue.next_due_at) == (0, None)
    attempt = DeliveryAttempt.objects.get()
    assert (attempt.status_code, attempt.error) == (200, "")
    wait_until(lambda: sender.free_places() == 100, "places are lost")


def test_each_subscription_of_an_event_gets_its_delivery(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    for number in range(5):
        subscribe(organization, receiver.url(f"/{number}"))
    accept(organization, 4)
    run_round(sender)
    receiver.wait_for(20)
    wait_until(lambda: statuses() == ["delivered"] * 20, "they aren't recorded")
    assert set(SubscriptionQueue.objects.values_list("in_flight", flat=True)) == {0}


def _pause(subscription: Subscription) -> None:
    SubscriptionQueue.objects.update(paused_until=Now() + timedelta(hours=1))


def _back_up(subscription: Subscription) -> None:
    SubscriptionQueue.objects.update(has_backlog=True)


def _be_due(subscription: Subscription) -> None:
    SubscriptionQueue.objects.update(next_due_at=Now())


def _fill(subscription: Subscription) -> None:
    SubscriptionQueue.objects.update(in_flight=4, concurrency_window=4)


def _limit_rate(subscription: Subscription) -> None:
    Subscription.objects.update(deliveries_per_second=1)


def _limit_requests(subscription: Subscription) -> None:
    Subscription.objects.update(max_in_flight=4)
    SubscriptionQueue.objects.update(in_flight=4, concurrency_window=100)


def _close(subscription: Subscription) -> None:
    SubscriptionQueue.objects.update(accepts_deliveries=False)


@pytest.mark.parametrize("how", [_back_up, _be_due, _limit_rate])
def test_what_has_to_wait_or_to_be_weighed_is_left_to_claims(
    organization: Organization, sender: Sender, how: Callable[[Subscription], None]
) -> None:
    subscription = subscribe(organization)
    how(subscription)
    accept(organization)
    assert run_round(sender).left_to_claims
    _assert_is_due(subscription, in_flight=0)
    assert sender.free_places() == 100


@pytest.mark.parametrize(("how", "in_flight"), [(_fill, 4), (_limit_requests, 4), (_pause, 0), (_close, 0)])
def test_what_no_claim_may_take_now_is_due_but_wakes_none(
    organization: Organization, sender: Sender, how: Callable[[Subscription], None], in_flight: int
) -> None:
    subscription = subscribe(organization)
    how(subscription)
    accept(organization)
    assert not run_round(sender).left_to_claims
    _assert_is_due(subscription, in_flight)
    assert sender.free_places() == 100


def test_the_result_that_makes_room_in_a_full_queue_has_the_others_claimed(organization: Organization) -> None:
    released = threading.Event()

    def respond(request: Received, number: int) -> Response:
        released.wait(60)
        return Response()

    with Receiver(respond) as receiver:
        subscription = subscribe(organization, receiver.url())
        SubscriptionQueue.objects.filter(pk=subscription.pk).update(concurrency_window=1)
        sender = _start(capacity=100)
        try:
            accept(organization)
            run_round(sender)
            receiver.wait_for(1)
            accept(organization, 2)
            assert not run_round(sender).left_to_claims
            assert statuses() == ["delivering", "pending", "pending"]
            released.set()
            wait_until(lambda: statuses() == ["delivered"] * 3)  # nothing else woke the sender, and it never polls
        finally:
            released.set()
            sender.stop(0)


def _assert_is_due(subscription: Subscription, in_flight: int) -> None:
    queue = queue_of(subscription)
    assert statuses() == ["pending"]
    assert queue.next_due_at is not None
    assert queue.in_flight == in_flight


def test_an_organization_with_much_in_flight_gets_places_while_a_claim_has_reserved_the_others(
    organization: Organization, sender: Sender
) -> None:
    """Slow endpoints keep claims going, each of which reserves all that it might fill."""
    with Receiver(lambda request, number: Response(delay=3600)) as receiver:
        slow = [subscribe(organization, receiver.url(f"/{number}")) for number in range(4)]
        SubscriptionQueue.objects.update(concurrency_window=10)
        accept(organization, 10)
        run_round(sender)
        receiver.wait_for(40)
        reserved = sender.reserve(50)
        Subscription.objects.filter(pk__in=[one.pk for one in slow]).update(is_active=False)
        healthy = subscribe(organization, receiver.url("/healthy"))
        accept(organization)
        run_round(sender)
        assert statuses(subscription=healthy) == ["delivering"]
        sender.release_places(reserved)
        sender.stop(0)


def _shares(*wanted: tuple[str, int], occupied: int = 0) -> list[int]:
    """Return the shares of queues by organization and deliveries, with 64 places that a claim has left of 512.

    occupied: places of the first organization.
    """
    owners = {name: uuid.uuid4() for name, _ in wanted}
    demands = [QueueDemand(uuid.uuid4(), owners[name], f"{number}:1", n) for number, (name, n) in enumerate(wanted)]
    occupancy = Occupancy(Counter({owners[wanted[0][0]]: occupied}), Counter(), Counter())
    reserved = min(64, sum(number for _, number in wanted))
    shares = share_places(demands, reserved, occupancy, 64 - reserved, 512 - occupied)
    return [shares.get(demand.subscription_id, 0) for demand in demands]


def test_organizations_and_their_queues_share_the_places_that_a_claim_has_left() -> None:
    assert _shares(("a", 200)) == [32], "the others may come while the claim lasts"
    assert _shares(("a", 100), ("b", 100)) == [32, 32]
    assert _shares(("a", 200), ("b", 1)) == [32, 1]
    assert _shares(*[("a", 10)] * 16) == [2] * 16
    assert _shares(("a", 1), occupied=300) == [1]
    assert _shares(("a", 1), ("a", 1), occupied=383) == [1, 0], "three times what stays free"
    assert _shares(("a", 1), ("b", 1), occupied=400) == [0, 1]


def test_a_disabled_subscription_s_delivery_is_held(organization: Organization, sender: Sender) -> None:
    subscription = subscribe(organization)
    subscriptions.disable(subscription)
    accept(organization)
    assert not run_round(sender).left_to_claims
    assert statuses() == ["held"]
    assert sender.free_places() == 100


def test_while_delivery_is_switched_off_or_first_attempts_wait_nothing_is_handed_over(
    organization: Organization, sender: Sender, settings: Any
) -> None:
    subscribe(organization)
    settings.DISABLE_WEBHOOK_DELIVERY = True
    accept(organization)
    run_round(sender)
    settings.DISABLE_WEBHOOK_DELIVERY = False
    settings.DELIVERY_RETRY_SCHEDULE = (60.0,)
    SubscriptionQueue.objects.update(next_due_at=None)
    accept(organization)
    run_round(sender)
    assert statuses() == ["pending"] * 2


def test_the_window_and_the_sender_s_places_bound_what_is_handed_over(organization: Organization) -> None:
    with Receiver(lambda request, number: Response(delay=3600)) as receiver:
        narrow = subscribe(organization, receiver.url("/narrow"))
        SubscriptionQueue.objects.filter(pk=narrow.pk).update(concurrency_window=2)
        sender = _start(capacity=20)
        try:
            accept(organization, 5)
            assert run_round(sender).left_to_claims
            receiver.wait_for(2)
            assert statuses() == ["delivering"] * 2 + ["pending"] * 3
            assert queue_of(narrow).in_flight == 2
            # A second organization's queue finds places; no single one gets all of them.
            wide = subscribe(Organization.objects.create(name="Wide"), receiver.url("/wide"))
            SubscriptionQueue.objects.filter(pk=wide.pk).update(concurrency_window=100)
            accept(wide.organization, 30)
            run_round(sender)
            in_flight = queue_of(wide).in_flight
            assert 0 < in_flight < 18
            wait_until(lambda: sender.free_places() == 20 - 2 - in_flight, "places are lost")
        finally:
            sender.stop(0)
    assert statuses() == ["pending"] * 35  # what was on the wire is given back


def test_a_host_gets_no_more_requests_than_a_claim_would_give_it(
    organization: Organization, sender: Sender, settings: Any
) -> None:
    settings.MAX_CONNECTIONS_PER_HOST = 3
    both = [subscribe(organization, f"http://127.0.0.1:9/{number}").pk for number in range(2)]
    hand_over = SenderHandOver(sender)
    with transaction.atomic():
        chosen = hand_over.choose([QueueDemand(one, organization.id, "127.0.0.1:9", 5) for one in both], [])
    hand_over.abandon()
    assert sorted(chosen.values()) == [1, 2]


def test_a_round_to_one_host_hands_over_no_more_than_the_host_may_get(
    organization: Organization, other_organization: Organization, sender: Sender, settings: Any
) -> None:
    settings.MAX_CONNECTIONS_PER_HOST = 3
    with Receiver(lambda request, number: Response(delay=3600)) as receiver:
        for owner in (organization, other_organization):
            subscribe(owner, receiver.url())
            accept(owner, 4)
        assert run_round(sender).left_to_claims
        receiver.wait_for(3)
        assert statuses() == ["delivering"] * 3 + ["pending"] * 5
        sender.stop(0)


def test_a_queue_that_has_to_wait_keeps_no_other_from_being_sent(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    ready, waiting = subscribe(organization, receiver.url()), subscribe(organization)
    due_at = datetime.now(UTC) - timedelta(hours=1)
    SubscriptionQueue.objects.filter(pk=waiting.pk).update(has_backlog=True, next_due_at=due_at, in_flight=1)
    accept(organization, 2)
    assert run_round(sender).left_to_claims
    receiver.wait_for(2)
    wait_until(lambda: statuses(subscription=ready) == ["delivered"] * 2, "they aren't recorded")
    assert statuses(subscription=waiting) == ["pending"] * 2
    queue = queue_of(waiting)
    assert (queue.in_flight, queue.next_due_at, queue.needs_resync) == (1, due_at, False)
    assert queue_of(ready).next_due_at is None
    wait_until(lambda: sender.free_places() == 100, "places are lost")


def test_a_queue_that_was_closed_meanwhile_will_hold_what_is_inserted(
    organization: Organization, sender: Sender
) -> None:
    subscription = subscribe(organization)
    _close(subscription)
    accept(organization)
    run_round(sender)
    assert (statuses(), queue_of(subscription).needs_resync) == (["pending"], True)


def test_a_round_locks_the_queues_of_disabled_subscriptions_with_the_others(
    organization: Organization, sender: Sender
) -> None:
    wanted, disabled = subscribe(organization), subscribe(organization)
    hand_over = SenderHandOver(sender)
    free = "SELECT subscription_id FROM webhooks_subscriptionqueue FOR UPDATE SKIP LOCKED"
    with transaction.atomic():
        demand = QueueDemand(wanted.pk, organization.id, "127.0.0.1:9", 1)
        assert hand_over.choose([demand], [disabled.pk]) == {wanted.pk: 1}
        with psycopg.connect(**{**connection.get_connection_params(), "cursor_factory": None}) as other:
            assert other.execute(free).fetchall() == []
    hand_over.abandon()


def test_a_large_round_is_left_to_claims(organization: Organization, sender: Sender) -> None:
    subscribe(organization)
    accept(organization, MOST_DELIVERIES + 1)
    assert run_round(sender).left_to_claims
    assert set(statuses()) == {"pending"}
    assert sender.free_places() == 100


def test_a_delivery_that_exists_is_neither_sent_again_nor_counted(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    subscription = subscribe(organization, receiver.url())
    (event,) = accept(organization)
    Delivery.objects.create(
        organization=organization, subscription=subscription, event_id=event, status="delivered", next_attempt_at=None
    )
    accept(organization)
    run_round(sender)
    receiver.wait_for(1)
    wait_until(lambda: statuses() == ["delivered"] * 2, "the other one isn't recorded")
    assert [request.headers["webhook-id"] for request in receiver.requests] != [str(event)]
    assert len(receiver.requests) == 1
    assert queue_of(subscription).in_flight == 0
    wait_until(lambda: sender.free_places() == 100, "places are lost")


def test_a_round_that_fails_hands_nothing_over_and_gives_the_places_back(
    organization: Organization, sender: Sender
) -> None:
    subscription = subscribe(organization)
    accept(organization)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE events_event ADD CONSTRAINT refused CHECK (status <> 'processed') NOT VALID")
    try:
        run_round(sender)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE events_event DROP CONSTRAINT refused")
    assert not Delivery.objects.exists()
    assert queue_of(subscription).in_flight == 0
    assert sender.free_places() == 100


def test_a_sender_that_stops_gives_back_what_is_handed_over_to_it(organization: Organization) -> None:
    subscription = subscribe(organization)
    sender = _start(capacity=10)
    hand_over = SenderHandOver(sender)
    accept(organization)

    class StopsMeanwhile(SenderHandOver):
        def begin(self) -> None:
            sender.stop_claiming()
            super().begin()

    FanOut().run_round(1000, hand_over=StopsMeanwhile(sender))
    sender.stop(0)
    wait_until(lambda: statuses() == ["pending"], "the lease is not given back")
    assert queue_of(subscription).in_flight == 0
    accept(organization)
    assert FanOut().run_round(1000, hand_over=hand_over).left_to_claims  # it takes nothing any more


def test_rounds_that_share_queues_never_wait_for_each_other_in_a_circle(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    for number in range(6):
        subscribe(organization, receiver.url(f"/{number}"), deliveries_per_second=None if number % 2 else 1000)
    rounds = 40

    def fan_out() -> None:
        own, hand_over = FanOut(), SenderHandOver(sender)
        for _ in range(rounds):
            borrow_connection(lambda: accept(organization) and own.run_round(1, hand_over=hand_over))

    with capture_logs() as logged:
        threads = [threading.Thread(target=fan_out) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        while run_round(sender).seen:
            pass
    assert not [line for line in logged if line["event"] == "transaction_retried"]
    sender.wake()
    wait_until(lambda: statuses() == ["delivered"] * 4 * rounds * 6, "not all is delivered")
    assert set(SubscriptionQueue.objects.values_list("in_flight", flat=True)) == {0}


def test_what_a_round_inserted_before_it_was_rolled_back_is_not_sent(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    subscription = subscribe(organization, receiver.url())
    (event,) = accept(organization)

    class Deadlocked(SenderHandOver):
        """Meets a deadlock after it has inserted; before the round is tried again, somebody else does its work."""

        attempts = 0

        def insert(self, deliveries: NewDeliveries) -> None:
            super().insert(deliveries)
            self.attempts += 1
            assert (self.inserted(), self.attempts) == (1, 1)
            raise psycopg.errors.DeadlockDetected

    def somebody_else() -> None:
        # Waits for the event's lock, which the rollback releases.
        borrow_connection(lambda: Event.objects.filter(pk=event).update(status="processed"))

    hand_over = Deadlocked(sender)
    other = threading.Thread(target=somebody_else)
    original = hand_over.choose

    def choose(*wanted: Any) -> Any:
        other.start()
        wait_until(lambda: _someone_waits_for_a_lock(), "nobody waits for the event")
        return original(*wanted)

    hand_over.choose = choose  # type: ignore[method-assign]
    result = FanOut().run_round(1000, hand_over=hand_over)
    other.join(30)
    assert (result.seen, hand_over.attempts) == (0, 1)
    assert not Delivery.objects.exists()
    assert sender.free_places() == 100
    (second,) = accept(organization)
    run_round(sender)
    assert [request.headers["webhook-id"] for request in receiver.wait_for(1)] == [str(second)]
    wait_until(lambda: queue_of(subscription).in_flight == 0, "the second one isn't recorded")
    assert len(receiver.requests) == 1


def _someone_waits_for_a_lock() -> bool:
    with psycopg.connect(**{**connection.get_connection_params(), "cursor_factory": None}) as own:
        waiting = own.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return waiting.fetchone() is not None
