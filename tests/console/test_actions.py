"""What an operator repairs: each action does what it says, in bounds, for whom it is, and is written down."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.forms.models import model_to_dict
from django.test import Client
from django.urls import reverse

from console import actions
from events.models import Event
from orgs.keys import authenticate
from orgs.models import ApiKey, AuditEntry
from tests.api.helpers import refuse_audit_entries
from tests.console.conftest import Staff
from tests.console.rows import World, act, ask, list_url, make_delivery, make_event, page_url, said
from webhooks import subscriptions
from webhooks.models import BulkRun, Delivery, Subscription, SubscriptionQueue


def status_of(row: Any) -> str:
    """Return the row's status now."""
    row.refresh_from_db()
    return str(row.status)


@pytest.mark.parametrize(
    ("action", "changes"),
    [
        ("retry", {"failed": "pending"}),
        ("replay", {"failed": "pending"}),
        ("hold", {"pending": "held"}),
        ("resume", {"held": "pending"}),
    ],
)
def test_a_repair_takes_the_deliveries_that_it_fits_and_says_why_it_left_the_others(
    world: World, operator: Client, action: str, changes: dict[str, str]
) -> None:
    answer = act(operator, action, list(world.deliveries.values()))
    for before, row in world.deliveries.items():
        assert status_of(row) == changes.get(before, before)
    assert "1 " in said(answer)
    assert "being sent right now" in said(answer)
    assert ("delivered already" in said(answer)) is (action in {"retry", "replay"})
    entry = AuditEntry.objects.get(action=f"delivery.{action}")
    assert entry.actor == "user:operator-1"
    assert entry.organization_id == world.organization.pk
    assert entry.detail["count"] == 1
    assert {str(world.deliveries[name].pk) for name in changes} <= {entry.target, *entry.targets}
    assert entry.reason == ("" if action == "resume" else "for a test")


def test_retry_makes_one_more_attempt_and_replay_starts_the_schedule_again(
    world: World, operator: Client, settings: Any
) -> None:
    failed = world.deliveries["failed"]
    Delivery.objects.filter(pk=failed.pk).update(attempts_used=8)
    SubscriptionQueue.objects.filter(pk=world.subscription.pk).update(
        paused_until="2999-01-01T00:00:00Z", next_due_at=None
    )
    act(operator, "retry", [failed])
    failed.refresh_from_db()
    assert (failed.attempts_used, failed.cause) == (len(settings.DELIVERY_RETRY_SCHEDULE) - 1, "manual")
    queue = SubscriptionQueue.objects.get(pk=world.subscription.pk)
    assert queue.paused_until is None
    assert queue.next_due_at is not None
    Delivery.objects.filter(pk=failed.pk).update(status="failed", attempts_used=8, next_attempt_at=None)
    act(operator, "replay", [failed])
    failed.refresh_from_db()
    assert (failed.attempts_used, failed.cause) == (0, "replay")


def test_deliveries_of_a_disabled_subscription_are_held_and_of_a_deleted_one_left_alone(
    world: World, operator: Client
) -> None:
    subscriptions.disable(world.subscription)
    failed = world.deliveries["failed"]
    answer = act(operator, "retry", [failed])
    assert "1 of them held, because their subscriptions are disabled" in said(answer)
    assert status_of(failed) == "held"
    subscriptions.delete(world.subscription)
    Delivery.objects.filter(pk=failed.pk).update(status="failed")
    assert "the subscription was deleted" in ask(operator, "replay", [failed]).content.decode()
    act(operator, "replay", [failed])
    assert status_of(failed) == "failed"


def test_an_events_replay_sends_its_settled_deliveries_again(world: World, operator: Client) -> None:
    other, _ = subscriptions.create(world.organization.pk, url="http://127.0.0.1:9/b", event_types=["*"])
    second = make_delivery(world.event, other, "delivered")
    answer = act(operator, "replay", [world.event])
    assert said(answer).startswith("Replay: 1 queued")
    assert (status_of(second), status_of(world.deliveries["failed"])) == ("delivered", "pending")
    answer = act(operator, "replay", [world.event], again="Send again")
    assert status_of(second) == "pending"
    assert status_of(world.deliveries["delivered"]) == "delivered"


def test_reprocess_takes_events_in_error(world: World, operator: Client) -> None:
    answer = act(operator, "reprocess", [world.error_event, world.event])
    assert "1 event queued" in said(answer)
    assert "1 processed, not in error" in said(answer)
    assert status_of(world.error_event) == "accepted"
    assert world.error_event.failed_attempts == 0
    assert status_of(world.event) == "processed"
    entry = AuditEntry.objects.get(action="event.reprocess")
    assert (entry.target, entry.actor) == (str(world.error_event.pk), "user:operator-1")


def test_a_subscription_is_disabled_with_a_reason_and_enabled_again(world: World, operator: Client) -> None:
    answer = act(operator, "disable", [world.subscription], reason="their\n deploy")
    assert "1 subscription disabled" in said(answer)
    world.subscription.refresh_from_db()
    assert not world.subscription.is_active
    assert world.subscription.disabled_reason == "Disabled by the operator: their deploy"
    for cause, listed in (("by_operator", True), ("gone", False), ("none_such", False)):
        page = operator.get(reverse("admin:webhooks_subscription_changelist"), {"disabled": cause}).content.decode()
        assert (str(world.subscription.pk) in page) is listed
    assert status_of(world.deliveries["pending"]) == "held"
    assert "their deploy" in operator.get(page_url(world.subscription)).content.decode()
    assert "their deploy" in operator.get(reverse("admin:index")).content.decode()
    assert "already disabled" in said(act(operator, "disable", [world.subscription]))
    answer = act(operator, "enable", [world.subscription])
    assert "1 subscription enabled" in said(answer)
    assert status_of(world.deliveries["pending"]) == "pending"
    assert "already enabled" in said(act(operator, "enable", [world.subscription]))
    words = AuditEntry.objects.filter(actor="user:operator-1", target=str(world.subscription.pk))
    assert set(words.values_list("action", flat=True)) == {"subscription.disable", "subscription.enable"}


def test_recover_needs_a_time_and_starts_a_run(world: World, operator: Client) -> None:
    for wrong in ("yesterday", "2026-13-01T00:00:00Z", "1e9"):
        assert b"Enter a time" in act(operator, "recover", [world.subscription], since=wrong).content
    assert b"This field is required" in act(operator, "recover", [world.subscription], since="").content
    BulkRun.objects.update(state="done")
    since = "2026-01-01T00:00:00Z"
    preview = act(operator, "recover", [world.subscription], since=since).content.decode()
    assert "There are 6 events since then. 1 deliveries would be queued." in preview
    assert BulkRun.objects.count() == 1
    words = {"since": since, "shown": "2026-01-01T00:00:00+00:00"}
    answer = act(operator, "recover", [world.subscription], **words)
    assert "recovery has begun" in said(answer)
    assert answer["Refresh"]
    answer = act(operator, "recover", [world.subscription], **words)
    assert "user:operator-1 began a recovery" in said(answer)
    run = BulkRun.objects.exclude(pk=world.run.pk).get()
    assert (run.kind, run.subscription_id) == ("recover", world.subscription.pk)
    assert AuditEntry.objects.get(action="subscription.recover").detail["run"] == str(run.pk)


def test_a_revoked_key_is_refused_at_once(world: World, owner: Client) -> None:
    assert authenticate(world.key_text) is not None
    assert "1 API key revoked" in said(act(owner, "revoke", [world.key]))
    assert authenticate(world.key_text) is None
    assert "already revoked" in said(act(owner, "revoke", [world.key]))
    entry = AuditEntry.objects.get(action="key.revoke")
    assert (entry.target, entry.target_name, entry.reason) == (str(world.key.pk), str(world.key), "for a test")


def disabled(subscription: Subscription) -> Subscription:
    if subscription.is_active:
        subscriptions.disable(subscription)
    return subscription


ACTIONS: list[tuple[str, Callable[[World], Any], str]] = [
    ("retry", lambda world: world.deliveries["failed"], "operator"),
    ("replay", lambda world: world.deliveries["failed"], "operator"),
    ("hold", lambda world: world.deliveries["pending"], "operator"),
    ("resume", lambda world: world.deliveries["held"], "operator"),
    ("replay", lambda world: world.event, "operator"),
    ("reprocess", lambda world: world.error_event, "operator"),
    ("disable", lambda world: world.subscription, "operator"),
    ("enable", lambda world: disabled(world.subscription), "operator"),
    ("send_test", lambda world: world.subscription, "operator"),
    ("rotate_secret", lambda world: world.subscription, "owner"),
    ("add_secret", lambda world: world.subscription, "owner"),
    ("recover", lambda world: world.subscription, "operator"),
    ("revoke", lambda world: world.key, "owner"),
]


@pytest.mark.parametrize(("action", "pick", "least"), ACTIONS)
def test_an_action_is_offered_and_done_only_with_its_permission(
    world: World, staff: Staff, action: str, pick: Callable[[World], Any], least: str
) -> None:
    row = pick(world)
    row.refresh_from_db()
    before = AuditEntry.objects.exclude(action="login").count()
    for group in ("viewer", "operator", "owner")[: ("viewer", "operator", "owner").index(least)]:
        client = staff(group)
        answer = act(client, action, [row], since="2026-01-01T00:00:00Z")
        assert answer.status_code == 403
        assert model_to_dict(pick(world)) == model_to_dict(type(row).objects.get(pk=row.pk))
        assert f'value="{action}"' not in client.get(page_url(row)).content.decode()
        assert AuditEntry.objects.exclude(action="login").count() == before
    client = staff(least)
    assert f'name="action" value="{action}"' in client.get(page_url(row)).content.decode()
    assert f'<option value="{action}"' in client.get(list_url(row)).content.decode()


def test_a_button_on_a_rows_page_does_it_to_this_row_and_comes_back(world: World, operator: Client) -> None:
    failed = world.deliveries["failed"]
    given = {"action": "retry", "_selected_action": str(failed.pk), "index": "0", "select_across": "0",
             "back": str(failed.pk)}  # fmt: skip
    page = operator.post(list_url(Delivery), given)
    assert page.status_code == 200
    for name, value in given.items():
        assert f'<input type="hidden" name="{name}" value="{value}">' in page.content.decode()
    assert status_of(failed) == "failed"
    answer = operator.post(
        list_url(Delivery), {**given, "confirmed": "1", "seen_at": page.context["form"].initial["seen_at"]}
    )
    assert answer["Location"] == page_url(failed)
    assert status_of(failed) == "pending"
    assert [str(message) for message in get_messages(answer.wsgi_request)]


def test_more_events_than_the_bound_are_refused_as_a_whole(world: World, operator: Client) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO events_event (id, organization_id, type, data, status, failed_attempts, last_error)"
            " SELECT gen_random_uuid(), %s, 'a', '1', 'error', 0, '' FROM generate_series(1, %s)",
            [world.organization.pk, actions.ACTION_BOUND + 1],
        )
    for action in ("replay", "reprocess"):
        answer = act(operator, action, [world.error_event], every=True)
        assert "too many for one action" in said(answer)
    assert status_of(world.error_event) == "error"
    assert not AuditEntry.objects.filter(action__in=["delivery.replay", "event.reprocess"]).exists()
    page = operator.get(list_url(type(world.event)))
    assert page.content.decode().count("the first 1,000") == 2, "above the list and below it"
    assert "There may be more than these." in page.content.decode()
    assert page.context["cl"].result_count == 1000


@pytest.mark.parametrize(
    ("action", "pick", "group"),
    [
        ("disable", lambda world: world.subscription, "operator"),
        ("hold", lambda world: world.deliveries["pending"], "operator"),
        ("revoke", lambda world: world.key, "owner"),
        ("stop_host", lambda world: world.subscription, "operator"),
    ],
)
def test_what_people_ask_about_later_needs_a_reason(
    world: World, staff: Staff, action: str, pick: Callable[[World], Any], group: str
) -> None:
    row, client = pick(world), staff(group)
    row.refresh_from_db()
    asked = ask(client, action, [row])
    assert 'name="reason"' in asked.content.decode()
    for reason in ("", " ", "\x00"):
        again = act(client, action, [row], reason=reason)
        assert 'class="errorlist"' in again.content.decode()
    assert model_to_dict(row) == model_to_dict(type(row).objects.get(pk=row.pk))
    act(client, action, [row], reason="<b>why</b>  not")
    assert model_to_dict(row) != model_to_dict(type(row).objects.get(pk=row.pk)) or row.pk == world.key.pk
    entry = AuditEntry.objects.latest("created_at")
    assert entry.reason == "<b>why</b> not"
    history = client.get(page_url(row, "history"), follow=True).content.decode()
    assert "&lt;b&gt;why&lt;/b&gt; not" in history
    assert f"user:{group}-1" in history


def test_an_organization_is_deactivated_only_with_a_reason(world: World, owner: Client) -> None:
    given = {"name": "Acme", "events_per_minute": "5", "retention_days": "7"}
    answer = owner.post(page_url(world.organization), given)
    assert "Say why" in answer.content.decode()
    world.organization.refresh_from_db()
    assert world.organization.is_active
    answer = owner.post(page_url(world.organization), {**given, "deactivation_reason": "does not pay"})
    assert answer.status_code == 302
    entry = AuditEntry.objects.get(action="organization.deactivate")
    assert (entry.target_name, entry.reason) == ("Acme", "does not pay")
    assert "does not pay" in owner.get(page_url(world.organization, "history"), follow=True).content.decode()
    owner.post(page_url(world.organization), {**given, "is_active": "on"})
    assert AuditEntry.objects.filter(action="organization.activate").count() == 1


def test_an_act_on_many_is_one_entry_that_the_history_of_each_leads_to(world: World, operator: Client) -> None:
    rows = [subscriptions.create(world.organization.pk, url=f"http://127.0.0.1:9/{n}", event_types=["*"])[0]
            for n in range(30)]  # fmt: skip
    act(operator, "disable", rows, reason="the data center moves")
    entry = AuditEntry.objects.get(action="subscription.disable")
    assert (entry.detail, entry.target_name, entry.target) == ({"count": 30}, "30 subscriptions", "")
    for row in (rows[0], rows[-1]):
        history = operator.get(page_url(row, "history"), follow=True)
        assert "the data center moves" in history.content.decode()
        assert history.redirect_chain[-1][0] == list_url(AuditEntry, target=str(row.pk))
    assert (
        "the data center moves"
        not in operator.get(page_url(world.subscription, "history"), follow=True).content.decode()
    )


def test_the_page_of_a_key_or_an_event_offers_only_what_would_change_it(world: World, owner: Client) -> None:
    def offered(row: Any) -> list[str]:
        return re.findall(r'name="action" value="(\w+)"', owner.get(page_url(row)).content.decode())

    assert offered(world.key) == ["revoke"]
    act(owner, "revoke", [world.key])
    assert offered(world.key) == []
    event = make_event(world.organization)
    assert offered(event) == ["replay"]
    Event.objects.filter(pk=event.pk).update(status="error")
    assert offered(event) == ["reprocess", "replay"]


def test_who_revoked_a_key_and_why_stands_on_its_page(world: World, owner: Client) -> None:
    act(owner, "revoke", [world.key], reason="it was in a public repository")
    page = owner.get(page_url(world.key)).content.decode()
    assert "user:owner-1" in page
    assert "it was in a public repository" in page


def test_an_organization_is_changed_and_the_change_is_written_down(world: World, owner: Client) -> None:
    answer = owner.post(
        page_url(world.organization),
        {"name": "Acme Ltd", "is_active": "on", "events_per_minute": "5", "retention_days": "7"},
    )
    assert answer.status_code == 302
    world.organization.refresh_from_db()
    assert (world.organization.name, world.organization.events_per_minute) == ("Acme Ltd", 5)
    entry = AuditEntry.objects.get(action="organization.change")
    assert entry.target == str(world.organization.pk)
    assert "Name" in str(entry.detail) or "name" in str(entry.detail)


def test_the_audit_log_cannot_be_changed_even_by_the_program(world: World) -> None:
    from django.db import DatabaseError, transaction

    for change in (lambda: AuditEntry.objects.all().delete(), lambda: AuditEntry.objects.update(actor="user:nobody")):
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            change()


@pytest.mark.parametrize("word", ["disable", "enable", "delete"])
def test_a_change_whose_audit_entry_can_t_be_written_does_not_happen(world: World, owner: Client, word: str) -> None:
    if word == "enable":
        subscriptions.disable(world.subscription)
    before = Subscription.objects.values().get(), SubscriptionQueue.objects.values().get()
    refuse_audit_entries(f"subscription.{word}")
    if word == "delete":
        answer = owner.post(page_url(world.subscription, "delete"), {"post": "yes"})
    else:
        answer = act(owner, word, [world.subscription])
    assert answer.status_code == 500
    assert (Subscription.objects.values().get(), SubscriptionQueue.objects.values().get()) == before


def test_ids_that_are_not_there_change_nothing(world: World, operator: Client) -> None:
    answer = operator.post(
        list_url(Delivery), {"action": "retry", "_selected_action": [str(uuid.uuid4())], "index": "0"}, follow=True
    )
    assert answer.status_code == 200
    assert ApiKey.objects.count() == 1
