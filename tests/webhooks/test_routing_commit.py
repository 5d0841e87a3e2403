"""Events that the front door fans out as it stores them: nothing is lost, sent twice, or waited for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from django.db import connection
from django.db.models.functions import Now
from django_redis import get_redis_connection
from pytest_django import Settings
from structlog.testing import capture_logs

from core.db import borrow_connection
from core.ids import new_id
from core.redis import breaker
from devstack.http_receiver import Receiver
from devstack.waiting import wait_until
from events.group_commit import Counted, PendingEvent, PendingRequest
from events.ingest import IngestStatus
from events.models import Event
from events.origin import NO_ORIGIN
from events.payload import NewEvent
from orgs.keys import Caller, authenticate, create_api_key
from orgs.models import Organization
from tests.webhooks.helpers import database_time, fan_out, queue_of, statuses, subscribe
from tests.webhooks.transactions import another_transaction, wait_until_held_up
from webhooks import subscriptions
from webhooks.dispatch.delivery import ClaimedDelivery
from webhooks.dispatch.leases import expire, extend, release
from webhooks.dispatch.sender import Sender
from webhooks.lease_channel import LEASED_KEY, SENDERS_KEY
from webhooks.lease_lengths import UNTAKEN_SECONDS
from webhooks.models import Delivery, DeliveryAttempt, Subscription, SubscriptionQueue
from webhooks.routing import routing_commit, subscribers_cache
from webhooks.routing.fan_out import FAN_OUT_LOCK
from webhooks.routing.routing_commit import MOST_EVENTS, RATE_EVENTS, RoutingCommit

T = TypeVar("T")
pytestmark = pytest.mark.django_db(transaction=True)


def caller_of(organization: Organization) -> Caller:
    caller = authenticate(create_api_key(organization)[1])
    assert caller is not None
    return caller


@contextlib.contextmanager
def taking(capacity: int = 100) -> Iterator[Sender]:
    """Run a sender that takes what is leased for it, and claims only what it is woken for."""
    sender = Sender(capacity, poll_seconds=3600, takes_leased=True)
    sender.start()
    try:
        wait_until(lambda: get_redis_connection("default").exists(SENDERS_KEY), "the sender isn't ready")
        yield sender
    finally:
        sender.stop(5)


@pytest.fixture
def sender() -> Iterator[Sender]:
    with taking() as running:
        yield running


class Door:
    """A running RoutingCommit.  told: how often the workers were told of events to process."""

    def __init__(self) -> None:
        self.told = 0
        self.commits = RoutingCommit(self._tell, release)

    def _tell(self) -> None:
        self.told += 1

    async def accept(self, caller: Caller, *events: NewEvent) -> list[uuid.UUID]:
        """Accept events with one request; return their ids."""
        results, _ = await self.commits.accept(caller, events or (event(),), Counted())
        assert {result.status for result in results} == {IngestStatus.ACCEPTED}
        return [result.event_id for result in results]

    async def until_ready(self, caller: Caller) -> None:
        """Wait until it remembers what the organization's subscriptions want, and has found a sender."""
        while self.commits._subscribers.get(caller.organization_id) is None or not self.commits._may_lease():
            await asyncio.sleep(0.01)

    async def until_done(self) -> None:
        """Wait for what it does after a commit."""
        while self.commits._tasks:
            await asyncio.wait(set(self.commits._tasks))


def at_the_door(work: Callable[[Door], Awaitable[Any]]) -> Door:
    """Run `work` with a door, and return that."""

    async def run() -> Door:
        door = Door()
        async with door.commits:
            await work(door)
            await door.until_done()
        return door

    return asyncio.run(run())


def event(kind: str = "a.b", **fields: Any) -> NewEvent:
    return NewEvent(kind, "{}", fields.pop("dedup_id", None), **fields)


def event_statuses() -> list[str]:
    return sorted(Event.objects.values_list("status", flat=True))


async def accept_when_ready(door: Door, caller: Caller, *events: NewEvent) -> list[uuid.UUID]:
    await door.until_ready(caller)
    return await door.accept(caller, *events)


async def in_thread(work: Callable[[], T]) -> T:
    """Return what `work`, which uses the database or waits, returns."""
    return await asyncio.get_running_loop().run_in_executor(None, borrow_connection, work)


def accept_one(organization: Organization, *events: NewEvent) -> Door:
    """Accept events with one request, by a door that is ready."""
    caller = caller_of(organization)
    return at_the_door(lambda door: accept_when_ready(door, caller, *events))


# --- what is fanned out ----------------------------------------------------------------------------


def test_an_event_is_sent_without_a_worker_that_looks_for_it(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    subscription = subscribe(organization, receiver.url())
    with capture_logs() as logs:
        door = accept_one(organization)
    (request,) = receiver.wait_for(1)
    wait_until(lambda: statuses() == ["delivered"], "it isn't recorded")
    (stored,) = Event.objects.all()
    assert request.headers["webhook-id"] == str(stored.pk)
    assert (stored.status, stored.processed_at) == ("processed", stored.created_at)
    queue = queue_of(subscription)
    assert (queue.in_flight, queue.next_due_at) == (0, None)
    assert door.told == 0, "there is nothing left for the workers"
    (line,) = [line for line in logs if line["event"] == "event_processed"]
    assert (line["event_id"], line["outcome"]) == (str(stored.pk), "persisted")
    wait_until(lambda: sender.free_places() == 100, "places are lost")


def test_an_event_that_nobody_wants_is_processed_when_it_is_stored(organization: Organization, sender: Sender) -> None:
    subscribe(organization, event_types=["other.*"])
    door = accept_one(organization)
    assert event_statuses() == ["processed"]
    assert (door.told, statuses()) == (0, [])


def test_without_a_sender_an_event_that_nobody_wants_is_processed_as_well(organization: Organization) -> None:
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        while door.commits._subscribers.get(organization.pk) is None:
            await asyncio.sleep(0.01)
        await door.accept(caller, *[event()] * MOST_EVENTS)

    assert at_the_door(work).told == 0
    assert set(event_statuses()) == {"processed"}


def test_each_subscription_of_each_event_gets_its_delivery(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    for number in range(3):
        subscribe(organization, receiver.url(f"/{number}"))
    subscribe(organization, receiver.url("/not"), event_types=["x.*"])
    accept_one(organization, *[event()] * MOST_EVENTS)
    requests = receiver.wait_for(3 * MOST_EVENTS)
    assert len({(request.path, request.headers["webhook-id"]) for request in requests}) == 3 * MOST_EVENTS
    wait_until(lambda: statuses() == ["delivered"] * 3 * MOST_EVENTS, "they aren't recorded")


@pytest.mark.parametrize("number", [MOST_EVENTS + 1, 1])
def test_where_many_events_come_they_are_left_to_the_workers(
    organization: Organization, receiver: Receiver, sender: Sender, number: int
) -> None:
    """Many in a commit, or many a second."""
    subscribe(organization, receiver.url())
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        for _ in range(1 if number > 1 else RATE_EVENTS - 1):
            door.commits._few_come(1)
        await door.accept(caller, *[event()] * number)

    door = at_the_door(work)
    assert (set(event_statuses()), door.told) == ({"accepted"}, 1)


def test_an_event_that_is_stored_beside_one_that_is_fanned_out_is_told_of(
    organization: Organization, sender: Sender
) -> None:
    subscribe(organization, event_types=["filtered"], filter={"a": 1})
    with capture_logs() as logs:
        door = accept_one(organization, event(), event("filtered"))
    assert (event_statuses(), door.told) == (["accepted", "processed"], 1)
    assert [line["type"] for line in logs if line["event"] == "event_processed"] == ["a.b"]


def test_an_event_of_an_organization_that_is_not_remembered_is_left_to_the_workers(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    subscribe(organization, receiver.url())
    caller = caller_of(organization)
    door = at_the_door(lambda door: door.accept(caller))
    assert (event_statuses(), door.told) == (["accepted"], 1)


def test_a_duplicate_makes_no_second_delivery(organization: Organization, receiver: Receiver, sender: Sender) -> None:
    subscribe(organization, receiver.url())
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        for expected in (IngestStatus.ACCEPTED, IngestStatus.DUPLICATE):
            (result,), _ = await door.commits.accept(caller, [event(dedup_id="one")], Counted())
            assert result.status is expected

    at_the_door(work)
    wait_until(lambda: statuses() == ["delivered"], "it isn't recorded")
    assert len(receiver.requests) == 1


# --- what is left to the workers --------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"inbox": "main"},
        {"filter": {"a": 1}},
        {"deliveries_per_second": 5},
    ],
    ids=["inbox", "filter", "rate"],
)
def test_subscriptions_that_need_more_are_left_to_the_workers(
    organization: Organization, sender: Sender, options: dict[str, Any]
) -> None:
    subscribe(organization, **options)
    door = accept_one(organization)
    assert (event_statuses(), statuses(), door.told) == (["accepted"], [], 1)


def test_a_disabled_subscription_gets_its_held_delivery_from_the_workers(
    organization: Organization, sender: Sender
) -> None:
    subscriptions.disable(subscribe(organization))
    door = accept_one(organization)
    assert (event_statuses(), statuses(), door.told) == (["accepted"], [], 1)
    fan_out()
    assert statuses() == ["held"]


@pytest.mark.parametrize("ordered", [True, False])
def test_an_event_with_an_ordering_key_is_left_to_the_workers_where_it_has_to_wait_for_others(
    organization: Organization, receiver: Receiver, sender: Sender, ordered: bool
) -> None:
    subscribe(organization, receiver.url(), ordered=ordered)
    door = accept_one(organization, event(ordering_key="k"))
    assert event_statuses() == (["accepted"] if ordered else ["processed"])
    assert door.told == int(ordered)


@pytest.mark.parametrize(
    "state",
    [
        "in_flight = concurrency_window",
        "has_backlog = true",
        "next_due_at = now()",
        "paused_until = now() + interval '1 hour'",
        "accepts_deliveries = false",
    ],
)
def test_a_queue_that_is_not_idle_gets_its_delivery_from_the_workers(
    organization: Organization, receiver: Receiver, sender: Sender, state: str
) -> None:
    subscribe(organization, receiver.url())
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE webhooks_subscriptionqueue SET {state}")
    door = accept_one(organization)
    assert (event_statuses(), statuses(), door.told) == (["accepted"], [], 1)


def test_no_more_than_a_queue_has_room_for_is_leased(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    subscription = subscribe(organization, receiver.url())
    SubscriptionQueue.objects.update(concurrency_window=10, in_flight=8)
    door = accept_one(organization, event(), event(), event())
    assert event_statuses() == ["accepted", "processed", "processed"]
    assert door.told == 1
    wait_until(lambda: statuses() == ["delivered"] * 2, "they aren't recorded")
    assert queue_of(subscription).in_flight == 8


@pytest.mark.parametrize("pause", [0.0, 3600.0])
def test_a_queue_that_somebody_has_locked_is_not_waited_for(
    organization: Organization, receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    monkeypatch.setattr(routing_commit, "LOCKED_SECONDS", pause)
    monkeypatch.setattr(routing_commit, "NOT_READY_SECONDS", 3600.0)
    subscribe(organization, receiver.url())
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        with another_transaction() as other:
            other.execute("SELECT FROM webhooks_subscriptionqueue FOR UPDATE")
            await asyncio.wait_for(door.accept(caller), 30)
            assert await in_thread(event_statuses) == ["accepted"]
            other.rollback()
        await door.accept(caller)  # within the pause, it isn't tried at all
        assert await in_thread(event_statuses) == ["accepted", "accepted" if pause else "processed"]

    assert at_the_door(work).told == (2 if pause else 1)


def test_an_event_for_a_queue_that_was_not_ready_is_left_to_the_workers_for_longer_than_after_a_lock(
    organization: Organization, receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing_commit, "NOT_READY_SECONDS", 3600.0)
    subscribe(organization, receiver.url())
    SubscriptionQueue.objects.update(has_backlog=True)
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await accept_when_ready(door, caller)
        await in_thread(lambda: SubscriptionQueue.objects.update(has_backlog=False))
        await asyncio.sleep(routing_commit.LOCKED_SECONDS)
        await door.accept(caller)

    assert at_the_door(work).told == 2
    assert event_statuses() == ["accepted"] * 2


def test_a_new_subscription_counts_from_the_next_event_on(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await accept_when_ready(door, caller)  # nobody wants it
        assert (await in_thread(event_statuses), door.told) == (["processed"], 0)
        await asyncio.sleep(subscribers_cache.LOOK_AGAIN_SECONDS)
        await in_thread(lambda: subscribe(organization, receiver.url()))
        await door.accept(caller)
        assert (await in_thread(event_statuses), door.told) == (["accepted", "processed"], 1), (
            "what is remembered is outdated"
        )
        while not door.commits._plan(pending(caller)).deliveries:
            await asyncio.sleep(0.01)
        await door.accept(caller)
        assert (await in_thread(event_statuses), door.told) == (["accepted", "processed", "processed"], 1)

    at_the_door(work)
    receiver.wait_for(1)


def pending(caller: Caller) -> list[Any]:
    """Return an event that is about to be stored."""
    request = PendingRequest(caller, NO_ORIGIN, Counted(), asyncio.get_running_loop().create_future())
    return [PendingEvent(request, str(new_id()), event(), None)]


def test_an_organization_with_many_subscriptions_is_left_to_the_workers(
    organization: Organization, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = subscribers_cache.MOST_SUBSCRIPTIONS + 1
    for _ in range(number):
        subscribe(organization, event_types=["other"])
    door = accept_one(organization)
    assert (event_statuses(), door.told) == (["accepted"], 1)
    remembered = door.commits._subscribers.get(organization.pk)
    assert remembered is not None
    assert remembered.matcher is None, "they aren't even read"
    subscriptions.delete(Subscription.objects.all()[0])
    assert accept_one(organization).told == 0


def test_a_fault_of_the_fan_out_refuses_no_event(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    subscribe(organization, receiver.url())
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE webhooks_subscriptionqueue ADD CONSTRAINT fault CHECK (in_flight < 1) NOT VALID")
    try:
        door = accept_one(organization)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE webhooks_subscriptionqueue DROP CONSTRAINT fault")
    assert (event_statuses(), statuses(), door.told) == (["accepted"], [], 1)


def test_a_commit_can_be_seen_before_it_reads_which_subscriptions_there_are(
    organization: Organization, sender: Sender
) -> None:
    """A recovery waits for those that it sees, as for the rounds of the workers."""
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        with another_transaction() as other:
            other.execute("LOCK TABLE webhooks_subscription IN ACCESS EXCLUSIVE MODE")
            accepting = asyncio.create_task(door.accept(caller))
            await in_thread(lambda: wait_until_held_up(other))
            locks = other.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND granted",
                [FAN_OUT_LOCK],
            ).fetchone()
            other.rollback()
            await accepting
        assert locks == (1,)

    at_the_door(work)


# --- senders that come and go -----------------------------------------------------------------------


def test_without_a_sender_nothing_is_leased(organization: Organization) -> None:
    subscribe(organization)
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        while door.commits._subscribers.get(organization.pk) is None:
            await asyncio.sleep(0.01)
        await door.accept(caller)

    assert at_the_door(work).told == 1
    assert (event_statuses(), statuses()) == (["accepted"], [])


def test_what_is_leased_for_a_sender_that_has_gone_is_due_at_once(organization: Organization) -> None:
    subscription = subscribe(organization)
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        sender.stop(0)
        get_redis_connection("default").delete(SENDERS_KEY)
        await door.accept(caller)
        await door.until_done()
        assert not door.commits._has_senders

    with taking() as sender:
        at_the_door(work)
    assert (event_statuses(), statuses()) == (["processed"], ["pending"])
    queue = queue_of(subscription)
    assert queue.in_flight == 0
    assert queue.next_due_at is not None
    assert get_redis_connection("default").zcard(LEASED_KEY) == 0


def lease_unseen(organization: Organization) -> None:
    """Lease an event's deliveries as if a sender were ready, and leave them to nobody."""
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        sender.stop(0)
        get_redis_connection("default").set(SENDERS_KEY, 1)
        await door.accept(caller)

    with taking() as sender:
        at_the_door(work)


def test_what_no_sender_learns_of_is_late_by_a_short_lease(organization: Organization) -> None:
    """As after a kill of the front door: the sweep takes the delivery back."""
    subscription = subscribe(organization)
    lease_unseen(organization)
    (delivery,) = Delivery.objects.all()
    assert delivery.status == "delivering"
    assert delivery.lease_expires_at is not None
    assert delivery.lease_expires_at - delivery.created_at == timedelta(seconds=UNTAKEN_SECONDS)
    Delivery.objects.update(lease_expires_at=Now())
    assert expire() == 1
    assert (statuses(), queue_of(subscription).in_flight) == (["pending"], 0)


def test_a_lease_in_its_second_half_is_given_back(organization: Organization, receiver: Receiver) -> None:
    subscribe(organization, receiver.url())
    lease_unseen(organization)
    Delivery.objects.update(lease_expires_at=Now() + timedelta(seconds=UNTAKEN_SECONDS / 2 - 0.1))
    with capture_logs() as logs, taking():
        wait_until(lambda: statuses() == ["delivered"], "it is neither sent nor given back")
    assert "leases_released" in {line["event"] for line in logs}
    (attempt,) = DeliveryAttempt.objects.all()
    assert attempt.number == 1


def test_the_lease_of_an_attempt_that_lasts_is_extended(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    subscribe(organization, receiver.url())
    receiver.hold()
    accept_one(organization)
    receiver.wait_for(1)

    def is_extended() -> bool:
        (delivery,) = Delivery.objects.all()
        assert delivery.lease_expires_at is not None
        return delivery.lease_expires_at - database_time() > timedelta(seconds=UNTAKEN_SECONDS)

    assert not is_extended()
    wait_until(is_extended, "the lease ends before the attempt")
    receiver.release()
    wait_until(lambda: statuses() == ["delivered"], "it isn't recorded")


def test_only_a_lease_that_lasts_is_extended(organization: Organization, receiver: Receiver, sender: Sender) -> None:
    subscribe(organization, receiver.url())
    receiver.hold()
    accept_one(organization)
    (delivery,) = Delivery.objects.all()
    claimed = ClaimedDelivery(
        delivery.pk, delivery.subscription_id, organization.pk, delivery.event_id, 0, "schedule",
        delivery.event_id, "a.b", delivery.created_at, "{}", endpoint=None,
    )  # fmt: skip
    assert extend([claimed], 3600) == 1
    Delivery.objects.update(lease_id=new_id())
    assert extend([claimed], 7200) == 0
    Delivery.objects.update(lease_id=delivery.event_id, status="delivered")
    assert extend([claimed], 7200) == 0
    Delivery.objects.update(status="delivering")
    receiver.release()


@pytest.mark.parametrize("setting", [{"DELIVERY_RETRY_SCHEDULE": [5.0]}, {"DISABLE_WEBHOOK_DELIVERY": True}])
def test_nothing_is_leased_where_nothing_may_be_sent_at_once(
    organization: Organization, sender: Sender, settings: Settings, setting: dict[str, Any]
) -> None:
    subscribe(organization)
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        for name, value in setting.items():
            setattr(settings, name, value)
        await door.accept(caller)

    assert at_the_door(work).told == 1
    assert (event_statuses(), statuses()) == (["accepted"], [])


def test_the_door_closes_when_what_it_has_leased_is_taken_or_given_back(organization: Organization) -> None:
    subscribe(organization)
    caller = caller_of(organization)

    async def run() -> None:
        door = Door()
        async with door.commits:
            await door.until_ready(caller)
            sender.stop(0)
            get_redis_connection("default").delete(SENDERS_KEY)
            await door.accept(caller)

    with taking() as sender:
        asyncio.run(run())
    assert statuses() == ["pending"]


def test_what_is_leased_while_redis_is_away_is_due_at_once(organization: Organization, sender: Sender) -> None:
    subscription = subscribe(organization)
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        breaker.open(60)
        try:
            await door.accept(caller)
            await door.until_done()
        finally:
            breaker.reset()

    at_the_door(work)
    assert statuses() == ["pending"]
    assert queue_of(subscription).in_flight == 0


def test_a_sender_without_a_place_gives_the_delivery_back_and_claims_it_later(organization: Organization) -> None:
    with Receiver() as slow, Receiver() as other, taking(capacity=1) as sender:
        slow.hold()
        subscribe(organization, slow.url(), event_types=["slow"])
        subscribe(organization, other.url(), event_types=["other"])
        caller = caller_of(organization)

        async def work(door: Door) -> None:
            await accept_when_ready(door, caller, event("slow"))
            await in_thread(lambda: slow.wait_for(1))
            await door.accept(caller, event("other"))

        assert at_the_door(work).told == 0
        wait_until(lambda: statuses() == ["delivering", "pending"], "it waits for its lease to end")
        wait_until(lambda: not get_redis_connection("default").exists(SENDERS_KEY), "the sender says that it is ready")
        slow.release()
        wait_until(lambda: statuses() == ["delivered"] * 2, "one of them is lost")
        assert sender.free_places() == 1


def test_a_sender_that_stops_leaves_nothing_under_its_leases(organization: Organization, receiver: Receiver) -> None:
    subscribe(organization, receiver.url())
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        stopping = asyncio.create_task(in_thread(lambda: sender.stop(5)))
        while not stopping.done():
            await door.accept(caller)
        await stopping

    with taking() as sender:
        at_the_door(work)
    left = get_redis_connection("default").zcard(LEASED_KEY)
    assert Delivery.objects.filter(status="delivering").count() == left


def test_what_comes_to_a_sender_as_it_stops_is_given_back(organization: Organization, receiver: Receiver) -> None:
    subscribe(organization, receiver.url())
    caller = caller_of(organization)

    async def work(door: Door) -> None:
        await door.until_ready(caller)
        # Its event loop is held up, so that it learns at the same time of the event and of the order to stop.
        sender._call(lambda: held_up.wait(30))
        await door.accept(caller)
        await door.until_done()
        assert get_redis_connection("default").zcard(LEASED_KEY) == 0
        sender.stop_claiming()
        held_up.set()

    held_up = threading.Event()
    with taking() as sender:
        at_the_door(work)
    assert (statuses(), receiver.requests) == (["pending"], [])


# --- what comes through Redis -----------------------------------------------------------------------


def test_what_somebody_else_leaves_in_redis_sends_nothing(
    organization: Organization, receiver: Receiver, sender: Sender
) -> None:
    """Only a delivery whose lease is the event's id was leased by the front door."""
    subscribe(organization, receiver.url())
    redis = get_redis_connection("default")
    accept_one(organization)
    wait_until(lambda: statuses() == ["delivered"], "it isn't recorded")
    (delivered,) = Event.objects.values_list("pk", flat=True)
    Delivery.objects.update(status="delivering", lease_id=new_id())
    with capture_logs() as logs:
        redis.zadd(LEASED_KEY, {str(delivered): 0, str(new_id()): 0, "garbage": 0, b"\xff" * 36: 0})
        wait_until(lambda: redis.zcard(LEASED_KEY) == 0, "the sender has stopped")
        Delivery.objects.update(status="delivered", lease_id=None)
        accept_one(organization)
        wait_until(lambda: statuses() == ["delivered"] * 2, "the sender has stopped")
    assert not [line for line in logs if line["log_level"] == "warning"]
    assert len(receiver.requests) == 2
