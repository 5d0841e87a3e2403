"""Search finds by exact values that a person at the phone can read out."""

from __future__ import annotations

from typing import Any

import pytest
from django.db.models import Model
from django.test import Client
from django.urls import reverse

from orgs.models import ApiKey, AuditEntry, Organization
from tests.console.rows import URL, World, list_url, make_event, nobody
from webhooks import subscriptions
from webhooks.models import BulkRun, Delivery, DeliveryAttempt, Subscription


def found(client: Client, model: type[Model], term: object, **query: object) -> set[Any]:
    """Return the ids that a search lists."""
    answer = client.get(list_url(model, q=term, **query), follow=True)
    assert answer.status_code == 200
    return {row.pk for row in answer.context["cl"].result_list}


def test_events_are_found_by_id_dedup_id_and_type(
    world: World, operator: Client, other_organization: Organization
) -> None:
    event = type(world.event)
    assert found(operator, event, world.event.pk) == {world.event.pk}
    assert found(operator, event, f"  {world.event.pk} ") == {world.event.pk}
    assert found(operator, event, "order-1") == {world.event.pk}
    assert found(operator, event, "order.broken") == {world.error_event.pk}
    theirs = make_event(other_organization, type="order.broken")
    assert found(operator, event, "order.broken") == {world.error_event.pk, theirs.pk}
    assert found(operator, event, "order.broken", organization=other_organization.pk) == {theirs.pk}
    assert found(operator, event, "order.broken", status="processed") == {theirs.pk}
    # A producer's own id may look like one of ours.
    odd = make_event(other_organization, dedup_id=str(nobody()))
    assert found(operator, event, nobody()) == {odd.pk}
    assert found(operator, event, "order") == set()
    assert found(operator, event, "x" * 300) == set()


def test_deliveries_are_found_by_ids_dedup_id_and_url(world: World, operator: Client) -> None:
    failed = world.deliveries["failed"]
    every = {row.pk for row in world.deliveries.values()}
    assert found(operator, Delivery, failed.pk) == {failed.pk}
    assert found(operator, Delivery, world.event.pk) == {failed.pk}
    assert found(operator, Delivery, "order-1") == {failed.pk}
    assert found(operator, Delivery, world.subscription.pk) == every
    assert found(operator, Delivery, URL) == every
    assert found(operator, Delivery, URL, status="held") == {world.deliveries["held"].pk}
    assert found(operator, Delivery, nobody()) == set()
    assert found(operator, Delivery, "no such thing") == set()


def test_subscriptions_are_found_by_uid_and_show_it_with_the_metadata(
    world: World, operator: Client, other_organization: Organization
) -> None:
    Subscription.objects.filter(pk=world.subscription.pk).update(uid="17", metadata={"plan": "<b>gold", "crm": "a-1"})
    assert found(operator, Subscription, "17") == {world.subscription.pk}
    assert found(operator, Subscription, "1") == set()
    every = {row.pk for row in world.deliveries.values()}
    assert found(operator, Delivery, "17") == every
    # Others may use the same one, and one that looks like an id of ours.
    theirs, _ = subscriptions.create(other_organization.pk, url="https://o.example/", event_types=["*"], uid="17")
    assert found(operator, Subscription, "17") == {world.subscription.pk, theirs.pk}
    assert found(operator, Subscription, "17", organization=other_organization.pk) == {theirs.pk}
    subscriptions.change(theirs, {"uid": str(nobody())})
    assert found(operator, Subscription, nobody()) == {theirs.pk}
    page = operator.get(reverse("admin:webhooks_subscription_change", args=[world.subscription.pk])).content.decode()
    assert "crm: a-1" in page
    assert "plan: &lt;b&gt;gold" in page
    assert '<div class="quiet">17' in operator.get(list_url(Subscription)).content.decode()


def test_attempts_subscriptions_runs_keys_organizations_and_entries_are_found(world: World, operator: Client) -> None:
    assert found(operator, DeliveryAttempt, world.attempt.pk) == {world.attempt.pk}
    assert found(operator, DeliveryAttempt, world.attempt.delivery_id) == {world.attempt.pk}
    assert found(operator, DeliveryAttempt, "99999999999999999999") == set()
    assert found(operator, Subscription, URL) == found(operator, Subscription, world.subscription.pk)
    assert found(operator, Subscription, URL) == {world.subscription.pk}
    assert found(operator, BulkRun, world.run.pk) == {world.run.pk}
    for term in (world.key.pk, world.key.prefix, f"trk_{world.key.prefix}_", f"{world.key.prefix}…", world.key_text):
        assert found(operator, ApiKey, term) == {world.key.pk}, term
    assert found(operator, Organization, "Ac") == {world.organization.pk}
    assert found(operator, Organization, world.organization.pk) == {world.organization.pk}
    for term in (world.entry.pk, "command:test", "key.create", world.key.pk):
        assert found(operator, AuditEntry, term) == {world.entry.pk}, term


@pytest.mark.parametrize("term", ["%", "_", "'", '"', "\\", "\u202e", "\U0001f600", "x" * 5000, "(", "*", "-1", "٣"])
def test_no_search_term_is_an_error(world: World, operator: Client, term: str) -> None:
    for row in world.rows():
        assert found(operator, type(row), term) == set()


def test_a_term_with_a_nul_is_refused_with_a_word(world: World, operator: Client) -> None:
    for row in world.rows():
        answer = operator.get(list_url(row, q="a\x00b"))
        assert answer.status_code == 200
        assert "Null characters are not allowed" in answer.content.decode()
