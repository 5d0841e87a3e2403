"""Inboxes in the console: no more is offered than they have, and their page can be saved."""

from __future__ import annotations

import re

import pytest
from django.http import HttpResponse
from django.test import Client

from orgs.models import Organization
from tests.console.rows import act, list_url, page_url, said
from tests.webhooks.helpers import accept
from webhooks import subscriptions
from webhooks.destinations.inbox import fetching
from webhooks.destinations.outcome import Failure
from webhooks.display.causes import words_for
from webhooks.display.formatting import format_time
from webhooks.models import Delivery, Subscription

pytestmark = pytest.mark.django_db

ADD = "/admin/webhooks/subscription/add/"
ENDPOINT_ACTIONS = ("send_test", "rotate_secret", "add_secret", "remove_secret", "stop_host", "enable_host")


@pytest.fixture
def inbox(organization: Organization) -> Subscription:
    """Return an inbox."""
    return subscriptions.create(organization.id, inbox="orders", event_types=["*"])[0]


def test_an_inbox_is_listed_and_offers_nothing_that_needs_an_endpoint(owner: Client, inbox: Subscription) -> None:
    assert "inbox:orders" in owner.get(list_url(Subscription)).content.decode()
    page = owner.get(page_url(inbox)).content.decode()
    assert "inbox:orders" in page
    assert 'value="disable"' in page
    for name in ENDPOINT_ACTIONS:
        assert f'value="{name}"' not in page
    for field in ("url", "headers_text", "max_in_flight", "deliveries_per_second", "format", "transform"):
        assert f'name="{field}"' not in page


def test_the_page_of_an_inbox_counts_what_consumers_have_fetched(
    owner: Client, inbox: Subscription, organization: Organization
) -> None:
    accept(organization, 6)
    lease, events = fetching.fetch(inbox.pk, 4, 60)
    fetching.give_back(inbox.pk, [events[0].delivery_id], 0, lease)
    page = " ".join(re.sub(r"<[^>]*>", " ", owner.get(page_url(inbox)).content.decode()).split())
    for line in ("waiting to be fetched 2", "fetched, and not acknowledged yet 3", "given back by a consumer 1"):
        assert line in page
    for of_an_endpoint in ("circuit breaker", "in flight", "next attempt", "As a table"):
        assert of_an_endpoint not in page
    for status, count in (("pending", 2), ("delivering", 3), ("retrying", 1)):
        listed = owner.get(list_url(Delivery, status=status, subscription=inbox.pk)).content.decode()
        assert listed.count(f"state-{status}") == count
        assert ">inbox:orders</a>" in listed
    leased = owner.get(page_url(Delivery.objects.get(pk=events[1].delivery_id))).content.decode()
    assert "state-delivering" in leased
    assert format_time(events[1].lease_expires_at) in leased
    assert 'value="hold"' not in leased  # what a consumer has in hand stays with it
    assert 'value="stop_host"' not in leased


@pytest.mark.parametrize("action", ENDPOINT_ACTIONS)
def test_an_action_that_needs_an_endpoint_is_refused(owner: Client, inbox: Subscription, action: str) -> None:
    before = Subscription.objects.values().get(pk=inbox.pk)
    assert "Nothing was changed." in said(act(owner, action, [inbox]))
    assert Subscription.objects.values().get(pk=inbox.pk) == before


def test_the_form_of_an_inbox_saves_what_an_inbox_has(owner: Client, inbox: Subscription) -> None:
    saved = owner.post(
        page_url(inbox),
        {
            "event_types_text": "order.*\nuser.created",
            "description": "for the ERP",
            "url": "nonsense",
            "format": "transform",
            "transform": "type",
        },
    )
    assert saved.status_code == 302, saved.content.decode()[-3000:]
    inbox.refresh_from_db()
    assert (inbox.event_types, inbox.description) == (["order.*", "user.created"], "for the ERP")
    assert (inbox.kind, inbox.url) == ("inbox", "inbox:orders")


def test_a_viewer_sees_an_inbox(viewer: Client, inbox: Subscription) -> None:
    shown = viewer.get(page_url(inbox))
    assert shown.status_code == 200
    assert "inbox:orders" in shown.content.decode()


@pytest.mark.parametrize("failure", [Failure.NOT_FETCHED, Failure.GIVEN_BACK, Failure.HELD_TOO_LONG])
def test_what_became_of_a_delivery_is_said_in_words(failure: Failure) -> None:
    assert words_for(failure.value) != failure.value


def _add(owner: Client, organization: Organization, **fields: str) -> HttpResponse:
    given = {"organization": str(organization.pk), "event_types_text": "*", "format": "standard", **fields}
    response: HttpResponse = owner.post(ADD, given)
    return response


def test_an_inbox_is_added_by_its_name(owner: Client, organization: Organization) -> None:
    assert 'name="inbox_name"' in owner.get(ADD).content.decode()
    saved = _add(owner, organization, inbox_name="billing", url="")
    assert saved.status_code == 302, saved.content.decode()[-3000:]
    made = Subscription.objects.get()
    assert (made.kind, made.inbox, made.url, made.encrypted_secret) == ("inbox", "billing", "inbox:billing", "")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"inbox_name": "orders"}, "The organization has an inbox of this name."),
        ({"inbox_name": "no spaces"}, "letters, digits"),
        ({"inbox_name": "other", "url": "https://example.com/"}, "an inbox has none: nothing is sent to it"),
        ({"inbox_name": "other", "max_in_flight": "3"}, "an inbox has none: nothing is sent to it"),
        ({"inbox_name": "", "url": ""}, "Enter a URL, or the name of an inbox."),
    ],
)
def test_an_inbox_that_can_t_be_is_refused_with_the_reason(
    owner: Client, inbox: Subscription, fields: dict[str, str], reason: str
) -> None:
    refused = _add(owner, inbox.organization, **fields)
    assert refused.status_code == 200
    assert reason in refused.content.decode()
    assert Subscription.objects.count() == 1
