"""The format of a subscription on its page in the admin."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from tests.console.rows import World
from tests.console.test_lists import rows_of
from webhooks.models import Delivery, Subscription
from webhooks.ordering_keys import PARKED_UNTIL

pytestmark = pytest.mark.django_db


def form(subscription: Subscription, **values: Any) -> dict[str, Any]:
    """Return what the page's form sends."""
    kept = {"url": subscription.url, "event_types_text": "\n".join(subscription.event_types)}
    current = {"format": subscription.format, "transform": subscription.transform}
    current["ordered_on_failure"] = subscription.ordered_on_failure
    return {**kept, "description": subscription.description, "headers_text": "", **current, **values}


def page(subscription: Subscription) -> str:
    return reverse("admin:webhooks_subscription_change", args=[subscription.pk])


def test_a_format_is_chosen_and_its_expression_checked(owner: Client, world: World) -> None:
    row = world.subscription
    assert 'name="transform"' in owner.get(page(row)).content.decode()
    for bad in ({"transform": ""}, {"transform": "a["}, {"transform": "a" * 5000}, {"format": "xml"}):
        answer = owner.post(page(row), form(row, **{"format": "transform", **bad}))
        assert answer.status_code == 200
        assert "errorlist" in answer.content.decode()
    answer = owner.post(page(row), form(row, format="transform", transform="{kind: type}"))
    assert answer.status_code == 302, answer.content.decode()[:3000]
    row.refresh_from_db()
    assert (row.format, row.transform) == ("transform", "{kind: type}")
    refused = owner.post(page(row), form(row, transform=""))
    assert "is required for the format transform" in refused.content.decode()
    assert owner.post(page(row), form(row, format="legacy", transform="")).status_code == 302
    row.refresh_from_db()
    assert (row.format, row.transform) == ("legacy", "")


def test_a_new_subscription_has_the_format_that_was_chosen(owner: Client, world: World) -> None:
    add = reverse("admin:webhooks_subscription_add")
    new = {"organization": str(world.organization.pk), "url": "https://new.example/", "event_types_text": "*"}
    assert owner.post(add, {**new, "format": "transform", "transform": ""}).status_code == 200
    assert "whsec_" in owner.post(add, {**new, "format": "raw"}).content.decode()
    made = Subscription.objects.get(url="https://new.example/")
    assert (made.format, made.transform) == ("raw", "")
    other = {**new, "url": "https://other.example/"}
    owner.post(add, other)  # of a script that doesn't know of formats
    assert Subscription.objects.get(url="https://other.example/").format == "standard"


def test_those_who_may_only_look_see_it(viewer: Client, world: World) -> None:
    Subscription.objects.update(format="transform", transform="{kind: type, x: '<b>'}")
    shown = viewer.get(page(world.subscription)).content.decode()
    assert "{kind: type, x: &#x27;&lt;b&gt;&#x27;}" in shown
    assert 'name="transform"' not in shown


def test_a_filter_is_checked_and_shown(owner: Client, viewer: Client, world: World) -> None:
    row = world.subscription
    for bad in ("{", '{"a": {"$regex": "x"}}', "[1]", '{"a": NaN}', '{"a": "\\ud800"}', "9" * 5000, "[" * 20_000):
        answer = owner.post(page(row), form(row, filter_text=bad))
        assert answer.status_code == 200
        assert "errorlist" in answer.content.decode()
    assert owner.post(page(row), form(row, filter_text='{"a": {"$gte": 1}}')).status_code == 302
    row.refresh_from_db()
    assert row.filter == {"a": {"$gte": 1}}
    assert "&quot;$gte&quot;: 1" in owner.get(page(row)).content.decode()
    assert "&quot;$gte&quot;: 1" in viewer.get(page(row)).content.decode()
    owner.post(page(row), form(row))  # of a script that doesn't know of filters
    row.refresh_from_db()
    assert row.filter == {"a": {"$gte": 1}}
    export = rows_of(owner, Subscription, "csv")[0]["filter"]
    assert json.loads(export) == {"a": {"$gte": 1}}
    assert owner.post(page(row), form(row, filter_text="")).status_code == 302
    row.refresh_from_db()
    assert row.filter is None


def test_channels_and_order_are_set_and_shown(owner: Client, viewer: Client, world: World) -> None:
    row = world.subscription
    wrong = owner.post(page(row), form(row, channels_text="eu a,b"))
    assert "errorlist" in wrong.content.decode()
    values = {"channels_text": "eu us", "ordered": "on", "ordered_attempts": "3", "ordered_on_failure": "block"}
    assert owner.post(page(row), form(row, **values)).status_code == 302
    row.refresh_from_db()
    assert (row.channels, row.ordered, row.ordered_attempts, row.ordered_on_failure) == (["eu", "us"], True, 3, "block")
    assert "eu us" in owner.get(page(row)).content.decode()
    assert "eu, us" in viewer.get(page(row)).content.decode()
    delivery = Delivery.objects.filter(subscription=row).first()
    assert delivery is not None
    Delivery.objects.filter(pk=delivery.pk).update(
        status="pending", ordering_key="<k>", ordered_at="2026-01-01T00:00Z", next_attempt_at=PARKED_UNTIL
    )
    shown = viewer.get(reverse("admin:webhooks_delivery_change", args=[delivery.pk])).content.decode()
    assert "&lt;k&gt;" in shown
    assert not re.search(rf"\b{PARKED_UNTIL.year}\b", shown)
