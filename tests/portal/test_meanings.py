"""For every state and cause that a tenant may see: what it means, what happens next, and what to do."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from events.erasure import erase
from orgs.models import AuditEntry, Organization
from orgs.scopes import Scope
from portal import meanings, texts
from portal.pages.help_page import LANGUAGES
from tests.console.rows import make_delivery, make_event
from tests.portal.conftest import Visitor
from tests.portal.test_pages import text_of
from webhooks import subscriptions
from webhooks.destinations.outcome import Failure
from webhooks.display.causes import error_words
from webhooks.display.standing import count_held_up
from webhooks.models import Delivery, DisabledCause, Subscription, SubscriptionQueue
from webhooks.ordering_keys import PARKED_UNTIL
from webhooks.states import DeliveryState, SubscriptionState, with_state

NOW = timezone.now()
LATER, BEFORE = NOW + datetime.timedelta(hours=2), NOW - datetime.timedelta(hours=2)


@pytest.fixture
def endpoint(organization: Organization) -> Subscription:
    return subscriptions.create(organization.pk, url="https://a.example/hook", event_types=["*"])[0]


def deliver(endpoint: Subscription, status: str, **values: Any) -> Delivery:
    return make_delivery(make_event(endpoint.organization, type="order.paid"), endpoint, status, **values)


def meaning(row: Delivery) -> meanings.Meaning:
    row = Delivery.objects.select_related("event", "subscription__queue").get(pk=row.pk)
    return meanings.of_delivery(row, None, count_held_up(row))


def asked(row: Subscription) -> meanings.Meaning:
    return meanings.of_endpoint(with_state(Subscription.objects.filter(pk=row.pk)).get())


def test_a_pause_says_who_wanted_it(endpoint: Subscription) -> None:
    queue = SubscriptionQueue.objects.filter(pk=endpoint.pk)
    waiting = deliver(endpoint, "pending", last_error="http_status", last_status_code=503)
    queue.update(failing_since=BEFORE, last_error="http_status", last_status_code=503, paused_until=LATER)
    assert asked(endpoint).text == texts.ASKED_FOR_PAUSE
    assert "asked us to wait until" in meaning(waiting).text
    queue.update(breaker_trips=2)
    assert asked(endpoint).text == texts.STATES["paused"]
    assert "Your code failed." in asked(endpoint).advice
    assert "is paused until" in meaning(waiting).text
    assert (
        meanings.next_attempt(Delivery.objects.get(pk=waiting.pk)) == LATER
    )  # and not the delivery's own, before that


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (DisabledCause.BY_REQUEST, texts.STATES["disabled"]),
        (DisabledCause.GONE, texts.DISABLED_GONE),
        (DisabledCause.ALWAYS_FAILED, texts.DISABLED_ALWAYS_FAILED),
        (DisabledCause.WITH_HOST, texts.DISABLED_WITH_HOST),
        (DisabledCause.BY_OPERATOR, texts.DISABLED_BY_OPERATOR),
    ],
)
def test_an_endpoint_says_why_it_is_disabled_whatever_the_reason_begins_with(
    visitor: Visitor, endpoint: Subscription, cause: DisabledCause, text: str
) -> None:
    held = deliver(endpoint, "pending")
    # The reason is somebody's words, and the cause isn't read from them.
    reason = "Disabled by request: Every delivery failed for the operator."
    subscriptions.disable_many([endpoint.pk], cause, reason, audit=lambda rows: None)
    for page in (visitor.get(), visitor.get(f"endpoints/{endpoint.pk}")):
        assert reason in text_of(page)
    assert text in text_of(page)
    assert ("What to do:" in text_of(page)) is (cause != DisabledCause.BY_REQUEST)
    held.refresh_from_db()
    assert texts.DELIVERY_STATES["held"] in text_of(visitor.get(f"deliveries/{held.pk}"))


def test_what_waits_says_for_what(endpoint: Subscription, settings: Any) -> None:
    due = {"next_attempt_at": BEFORE}
    row = deliver(endpoint, "pending")
    assert meaning(row).text == texts.DELIVERY_STATES["pending"]
    assert meaning(deliver(endpoint, "pending", last_error="timeout")).text == texts.DELIVERY_STATES["retrying"]
    assert meaning(deliver(endpoint, "pending", attempt_count=1)).text == texts.AGAIN
    row = deliver(endpoint, "pending", **due)
    assert meaning(row).text == texts.DUE
    Subscription.objects.update(deliveries_per_second=0.5)
    SubscriptionQueue.objects.update(next_due_at=LATER)
    assert "at most 0.5 webhooks a second" in meaning(row).text
    settings.DISABLE_WEBHOOK_DELIVERY = True
    assert meaning(row).text == texts.SENDING_DISABLED
    by_operator = deliver(endpoint, "held")
    assert meaning(by_operator).text == texts.why_not_retryable(by_operator) == texts.HELD_BY_OPERATOR
    subscriptions.disable(endpoint)
    settings.HELD_RETENTION_DAYS = 30
    assert "held for more than 30 days" in meaning(deliver(endpoint, "held")).text


def test_what_is_over_says_why(endpoint: Subscription, organization: Organization) -> None:
    for error, text in texts.CANCELLED_BECAUSE.items():
        assert meaning(deliver(endpoint, "cancelled", last_error=error)).text == text
    assert meaning(deliver(endpoint, "cancelled", last_error="timeout")).text == texts.CANCELLED_SKIPPED
    failed = deliver(endpoint, "failed", last_error=Failure.TRANSFORM_FAILED)
    assert meaning(failed).text == texts.FAILED_AT_ONCE
    Delivery.objects.filter(pk=failed.pk).update(last_error="timeout")
    assert meaning(failed).text == texts.DELIVERY_STATES["failed"]
    subscriptions.disable(endpoint)
    assert meaning(failed).text == texts.FAILED_DISABLED
    waiting = deliver(endpoint, "pending")
    subscriptions.delete(endpoint)
    assert meaning(failed).text == texts.FAILED_DELETED
    SubscriptionQueue.objects.filter(pk=endpoint.pk).update(needs_resync=True)
    subscriptions.resync(endpoint.pk)
    waiting.refresh_from_db()
    assert "its endpoint was deleted" in meaning(waiting).text
    erase(organization.pk, failed.event_id)
    assert meaning(failed).text == texts.FAILED_ERASED


def test_the_help_explains_every_state_and_every_failure(visitor: Visitor) -> None:
    page = visitor.get("help").content.decode()
    text = text_of(visitor.get("help"))
    for name, known in (
        *((state, texts.STATES) for state in SubscriptionState.values),
        *((state, texts.DELIVERY_STATES) for state in DeliveryState.values),
    ):
        assert known[name] in text
    assert set(texts.INBOX_STATES) == set(DeliveryState.values) - {DeliveryState.FAILED, DeliveryState.CANCELLED}
    for failure in Failure:
        if failure in {Failure.HELD_TOO_LONG, Failure.NOT_FETCHED, Failure.GIVEN_BACK}:
            continue  # no attempt's
        for status in (400, 401, 403, 404, 405, 410, 413, 429, 500, 503) if failure is Failure.HTTP_STATUS else (302,):
            about, advice = texts.advice(failure, status)
            assert advice
            assert "_" not in error_words(failure, status)
            assert f'id="error-{about}"' in page, failure
    for about in ("order", "operator", "pause"):
        assert f'id="error-{about}"' in page
    for name in LANGUAGES:
        assert visitor.get("help", language=name).status_code == 200


# --- order ------------------------------------------------------------------------------------------


@pytest.fixture
def queue_of_two(organization: Organization) -> tuple[Delivery, Delivery]:
    """Return a delivery that has failed, and one of the same ordering key that waits for it."""
    row, _ = subscriptions.create(
        organization.pk, url="https://a.example/", event_types=["*"], ordered=True, ordered_on_failure="block",
        ordered_attempts=3, filter={"total": {"$gte": 100}}, channels=["eu"],
    )  # fmt: skip
    SubscriptionQueue.objects.filter(pk=row.pk).update(has_ordered=True)
    keyed = {"ordering_key": "order-1", "last_error": ""}
    first = deliver(row, "failed", **{**keyed, "last_error": "timeout"}, ordered_at=BEFORE, attempt_count=3)
    return first, deliver(row, "pending", **keyed, ordered_at=NOW, next_attempt_at=PARKED_UNTIL)


def test_a_webhook_that_waits_in_its_order_says_for_what_and_can_go_on(
    visitor: Visitor, open_portal: Callable[..., Visitor], queue_of_two: tuple[Delivery, Delivery]
) -> None:
    first, second = queue_of_two
    page = visitor.get(f"deliveries/{second.pk}")
    text = text_of(page)
    assert f"{texts.WAITS_IN_ORDER} {texts.EARLIER_FAILED}" in text
    assert texts.EARLIER_FAILED_ADVICE in text
    assert f'href="/portal/deliveries/{first.pk}"' in page.content.decode()
    assert "Ordering key order-1" in text
    assert "Next attempt" not in text
    assert "Retry now" not in text  # which would change nothing
    assert "We're trying again" not in text_of(visitor.get(f"deliveries/{second.pk}?done=retried"))
    retrying = {"status": "pending", "next_attempt_at": LATER}
    for change, words_then in (
        ({**retrying, "last_error": "timeout"}, texts.EARLIER_RETRYING_BLOCKS),
        ({**retrying, "last_error": ""}, texts.EARLIER_PENDING),
        ({"status": "held"}, texts.EARLIER_HELD),
        ({"status": "failed", "last_error": "timeout"}, ""),
    ):
        Delivery.objects.filter(pk=first.pk).update(**change)
        assert words_then in text_of(visitor.get(f"deliveries/{second.pk}"))
    about_first = text_of(visitor.get(f"deliveries/{first.pk}"))
    assert "1 later webhook with the same ordering key waits for it" in about_first
    assert "Retry now Skip" in about_first
    only_reads = open_portal(scopes=[Scope.DELIVERIES_READ.value]).get(f"deliveries/{first.pk}")
    assert "/skip" not in only_reads.content.decode()
    assert "1 is waiting for it. This can't be undone." in text_of(visitor.get(f"deliveries/{first.pk}/skip"))
    answer = visitor.post(f"deliveries/{first.pk}/skip")
    assert answer["Location"] == f"/portal/deliveries/{first.pk}?done=skipped"
    assert texts.CANCELLED_SKIPPED in text_of(visitor.client.get(answer["Location"]))
    second.refresh_from_db()
    assert second.next_attempt_at
    assert second.next_attempt_at < LATER
    assert AuditEntry.objects.get(action="delivery.skip").target == str(first.pk)
    again = visitor.post(f"deliveries/{first.pk}/skip")
    assert (again.status_code, "was cancelled already" in text_of(again)) == (409, True)
    without = deliver(second.subscription, "failed")
    refused = visitor.get(f"deliveries/{without.pk}/skip")
    assert (refused.status_code, "has no ordering key" in text_of(refused)) == (409, True)


def test_an_endpoint_shows_what_decides_which_webhooks_come_and_how(
    visitor: Visitor, queue_of_two: tuple[Delivery, Delivery], organization: Organization
) -> None:
    text = text_of(visitor.get(f"endpoints/{queue_of_two[0].subscription_id}"))
    assert "Channels: only events in one of them eu" in text
    assert '"$gte": 100' in text
    assert "those behind it wait. Attempts: 3" in text
    row, _ = subscriptions.create(organization.pk, url="https://b.example/", event_types=["*"], secret_type="ed25519")
    public = row.secret_details[0]["public_key"]
    assert public in text_of(visitor.get(f"endpoints/{row.pk}"))
    rotated = text_of(visitor.post(f"endpoints/{row.pk}/secret", overlap="0"))
    row.refresh_from_db()
    assert row.secret_details[0]["public_key"] in rotated
    assert "only needs its public half" in rotated
