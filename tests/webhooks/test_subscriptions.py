"""Subscriptions that change while deliveries are on their way: nothing goes to the wrong place, nothing is lost."""

from __future__ import annotations

import datetime
from importlib import import_module
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from standardwebhooks import Webhook, WebhookVerificationError

from devstack.http_receiver import Received, Receiver, Response
from devstack.waiting import wait_until
from orgs.models import Organization
from tests.webhooks.helpers import NOWHERE, accept, queue_of, sending, statuses, subscribe
from webhooks import subscriptions
from webhooks.destinations.http.auth import Bearer
from webhooks.destinations.http.signing import secret_key
from webhooks.dispatch.claim import claim
from webhooks.models import Delivery, DeliveryAttempt, Subscription, SubscriptionQueue
from webhooks.subscriptions import RESYNC_ROWS


@pytest.mark.django_db(transaction=True)
def test_what_waits_and_what_comes_for_a_disabled_subscription_is_held_and_delivered_when_it_is_enabled(
    organization: Organization, receiver: Receiver, api: Any
) -> None:
    subscription = subscribe(organization, receiver.url())
    accept(organization, 3)
    assert api.post(f"/api/subscriptions/{subscription.pk}/disable").json()["status"] == "disabled"
    with sending() as sender:
        accept(organization, 4)
        sender.wake()
        assert sender.wait_until_drained(30)
        assert receiver.count == 0
        assert statuses() == ["held"] * 7
        assert api.post(f"/api/subscriptions/{subscription.pk}/enable").json()["status"] == "active"
        wait_until(lambda: statuses() == ["delivered"] * 7)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 7


@pytest.mark.django_db(transaction=True)
def test_nothing_more_is_sent_to_a_deleted_subscription_and_all_that_is_open_is_cancelled(
    organization: Organization, receiver: Receiver, api: Any
) -> None:
    receiver.behavior = lambda request, number: Response(503, delay=0.5)
    subscription = subscribe(organization, receiver.url())
    accept(organization, 20)
    with sending() as sender:
        receiver.wait_for(1)
        assert api.delete(f"/api/subscriptions/{subscription.pk}").status_code == 204
        claimed = set(Delivery.objects.filter(status="delivering").values_list("event_id", flat=True))
        wait_until(lambda: statuses() == ["cancelled"] * 20)
        accept(organization, 5)
        sender.wake()
        assert sender.wait_until_drained(30)
    # What was on the wire can't be called back; nothing was begun after.
    attempted = set(DeliveryAttempt.objects.values_list("delivery__event_id", flat=True))
    assert claimed <= attempted
    assert receiver.count == DeliveryAttempt.objects.count() <= 4 + len(claimed)
    assert Delivery.objects.count() == 20
    assert api.get(f"/api/subscriptions/{subscription.pk}").status_code == 404


@pytest.mark.django_db(transaction=True)
def test_the_next_attempt_uses_the_new_url_and_headers(
    organization: Organization, receiver: Receiver, api: Any, settings: Any
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, *[0.2] * 40)
    receiver.behavior = lambda request, number: Response(500 if request.path == "/old" else 200)
    subscription = subscribe(organization, receiver.url("/old"))
    with sending():
        accept(organization)
        receiver.wait_for(1, "/old")
        changed = api.patch(
            f"/api/subscriptions/{subscription.pk}", {"url": receiver.url("/new"), "headers": {"X-New": "1"}}
        )
        assert changed.status_code == 200
        (request,) = receiver.wait_for(1, "/new")
        wait_until(lambda: statuses() == ["delivered"])
    assert request.headers["x-new"] == "1"
    assert request.headers["webhook-id"] == receiver.of("/old")[0].headers["webhook-id"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("overlap", [0, 3600])
def test_the_next_attempt_is_signed_with_the_new_secret_and_in_the_overlap_with_both(
    organization: Organization, receiver: Receiver, api: Any, settings: Any, overlap: int
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, *[0.2] * 40)
    before: list[int] = []  # requests that may have been signed before the rotation

    def behave(request: Received, number: int) -> Response:
        return Response(200 if before and number > before[0] else 500)

    receiver.behavior = behave
    subscription, old = subscriptions.create(organization.id, url=receiver.url(), event_types=["*"])
    with sending():
        accept(organization)
        receiver.wait_for(1)
        answer = api.post(f"/api/subscriptions/{subscription.pk}/rotate-secret", {"overlap_seconds": overlap})
        new = answer.json()["secret"]
        before.append(receiver.count + 1)  # one may be on its way
        wait_until(lambda: statuses() == ["delivered"])
    first, last = receiver.requests[0], receiver.requests[-1]
    Webhook(old).verify(first.body, first.headers)
    Webhook(new).verify(last.body, last.headers)
    if overlap:
        Webhook(old).verify(last.body, last.headers)
    else:
        with pytest.raises(WebhookVerificationError):
            Webhook(old).verify(last.body, last.headers)


@pytest.mark.django_db
def test_the_secrets_of_several_rotations_sign_in_turn_the_last_one_first(organization: Organization) -> None:
    subscription, first = subscriptions.create(organization.id, url=NOWHERE, event_types=["*"])
    hour = datetime.timedelta(hours=1)
    secrets = [first, *(subscriptions.rotate_secret(subscription, hour) for _ in range(3))]
    accept(organization)
    [claimed] = claim(1).deliveries
    assert claimed.endpoint.keys == tuple(secret_key(secret) for secret in reversed(secrets))
    kept = Subscription.objects.get()
    second_ended = [*kept.previous_secrets_expire_at]
    second_ended[1] = Subscription.objects.annotate(now=Now()).get().now
    Subscription.objects.update(previous_secrets_expire_at=second_ended)
    SubscriptionQueue.objects.update(in_flight=0, next_due_at=Now())
    Delivery.objects.update(status="pending")
    [again] = claim(1).deliveries
    assert again.endpoint.keys == tuple(secret_key(secrets[number]) for number in (3, 2, 0))


@pytest.mark.django_db
def test_a_new_address_starts_with_a_clean_record(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization)
    SubscriptionQueue.objects.update(
        paused_until=Now() + datetime.timedelta(hours=1), breaker_trips=3, consecutive_failures=30,
        concurrency_window=1,
        failing_since=Now(),
    )  # fmt: skip
    subscriptions.change(subscription, {"description": "still the same"})
    assert claim(10).deliveries == []
    subscriptions.change(subscription, {"url": "http://127.0.0.1:9/new"})
    (claimed,) = claim(10).deliveries
    assert claimed.endpoint.url.endswith("/new")
    assert queue_of(subscription).failing_since is None


@pytest.mark.django_db
@pytest.mark.parametrize(("act", "becomes"), [("disable", "held"), ("delete", "cancelled")])
def test_a_long_queue_changes_in_chunks_and_nothing_of_it_is_sent_meanwhile(
    organization: Organization, act: str, becomes: str
) -> None:
    subscription = subscribe(organization)
    accept(organization, 25)
    assert RESYNC_ROWS > 25
    # The first chunk is done with the change itself; here all of it is left to the sweep.
    SubscriptionQueue.objects.update(needs_resync=False)
    if act == "disable":
        Subscription.objects.update(is_active=False)
    else:
        Subscription.objects.update(is_active=False, deleted_at=Now())
    SubscriptionQueue.objects.update(accepts_deliveries=False, needs_resync=True)
    assert claim(100).deliveries == []
    assert not subscriptions.resync(subscription.pk, 10)
    assert sorted(statuses()) == sorted([becomes] * 10 + ["pending"] * 15)
    assert claim(100).deliveries == []
    assert not subscriptions.resync(subscription.pk, 10)
    assert subscriptions.resync(subscription.pk, 10)
    assert statuses() == [becomes] * 25
    assert not queue_of(subscription).needs_resync


@pytest.mark.django_db
def test_disabling_twice_keeps_the_first_reason(organization: Organization) -> None:
    subscription = subscribe(organization)
    subscriptions.disable(subscription, "first")
    subscriptions.disable(subscription, "second")
    assert (subscription.disabled_cause, subscription.disabled_reason) == ("by_request", "Disabled by request: first")
    subscriptions.enable(subscription)
    row = subscription
    assert (row.disabled_cause, row.disabled_reason, row.disabled_at) == ("", "", None)


@pytest.mark.django_db
def test_a_change_that_meets_a_deletion_gives_it_no_new_secret(organization: Organization) -> None:
    subscription = subscribe(organization)
    subscriptions.delete(Subscription.objects.get(pk=subscription.pk))
    subscriptions.change(subscription, {"headers": {"X-Token": "secret"}, "auth": Bearer("secret")})
    row = Subscription.objects.get(pk=subscription.pk)
    assert (row.encrypted_headers, row.encrypted_auth) == ("", "")


def test_a_deleted_subscription_keeps_no_secret(organization: Organization) -> None:
    subscription = subscribe(organization, headers={"X-Token": "t"})
    subscriptions.delete(subscription)
    row = Subscription.objects.get(pk=subscription.pk)
    assert (row.encrypted_secret, row.encrypted_previous_secrets, row.encrypted_headers) == ("", [], "")


@pytest.mark.django_db
def test_what_earlier_versions_disabled_gets_its_cause_and_names_no_member_of_staff(organization: Organization) -> None:
    expected = {
        "Disabled by request.": ("by_request", "Disabled by request."),
        "Disabled by request: Every delivery failed": ("by_request", "Disabled by request: Every delivery failed"),
        "The endpoint returned 410 Gone.": ("gone", "The endpoint returned 410 Gone."),
        "Every delivery failed for 5.0 days.": ("always_failed", "Every delivery failed for 5.0 days."),
        "Disabled by the operator: ask olga": ("by_operator", "Disabled by the operator: ask olga"),
        "Disabled by olga@acme.example: spam": ("by_operator", "Disabled by the operator: spam"),
        "Disabled by requester: spam": ("by_operator", "Disabled by the operator: spam"),
        "Disabled by olga.": ("by_operator", "Disabled by the operator."),
        "olga wants it": ("by_operator", "Disabled by the operator."),
        "Host a.example stopped by the operator: it is down": (
            "with_host", "Host a.example stopped by the operator: it is down"
        ),
        "Host a.example stopped by olga: it is down": (
            "with_host", "Host a.example stopped by the operator: it is down"
        ),
        "": ("by_operator", "Disabled by the operator."),
    }  # fmt: skip
    rows = {reason: subscribe(organization) for reason in expected}
    active = subscribe(organization)
    set_causes = import_module("webhooks.migrations.0005_earlier_causes").SET_CAUSES
    with connection.cursor() as cursor:
        for reason, row in rows.items():
            cursor.execute(
                "UPDATE webhooks_subscription SET is_active = false, disabled_reason = %s, stopped_with_host = %s"
                " WHERE id = %s",
                [reason, reason.startswith("Host"), row.pk],
            )
        cursor.execute(set_causes)
    for row in (*rows.values(), active):
        row.refresh_from_db()
    assert {reason: (row.disabled_cause, row.disabled_reason) for reason, row in rows.items()} == expected
    assert (active.disabled_cause, active.disabled_reason) == ("", "")
