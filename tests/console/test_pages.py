"""Every page of the admin opens for whom it should, and shows the way from one row to the next."""

from __future__ import annotations

import datetime
import json
import re

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse

from events.models import EventType
from orgs.models import ApiKey, AuditEntry, Organization
from tests.console.conftest import Staff
from tests.console.rows import HEADER_SECRET, URL, World, list_url, make_attempt, make_event, nobody, page_url
from webhooks.models import BulkRun, Delivery, DeliveryAttempt, Subscription, SubscriptionQueue

FOR_OWNERS = {User, Group}
ADDABLE = {Organization, ApiKey, EventType, Subscription, User}


@pytest.mark.parametrize("group", ["viewer", "operator", "owner", "superuser"])
def test_every_list_and_page_opens_for_each_group(world: World, staff: Staff, group: str) -> None:
    client = staff(group)
    rows = {type(row): row for row in [*world.rows(), User.objects.get(), Group.objects.first()]}
    assert set(rows) == set(admin.site._registry), "a model has no row in this test"
    for model, row in rows.items():
        expected = 403 if model in FOR_OWNERS and group in {"viewer", "operator"} else 200
        assert client.get(list_url(model)).status_code == expected, model
        assert client.get(page_url(row)).status_code == expected, model
        may_add = (group == "superuser" and model is Group) or (group in {"owner", "superuser"} and model in ADDABLE)
        answer = client.get(reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add"))
        assert answer.status_code == (200 if may_add else 403), model
        history = client.get(page_url(row, "history"), follow=True)
        assert history.status_code == expected, model
    assert client.get(reverse("admin:index")).status_code == 200


def test_staff_without_a_group_see_nothing_and_others_are_sent_to_log_in(world: World, staff: Staff) -> None:
    nobody_in_particular, anonymous = staff("nobody"), Client()
    for model in admin.site._registry:
        assert nobody_in_particular.get(list_url(model)).status_code == 403
        answer = anonymous.get(list_url(model))
        assert answer.status_code == 302
        assert answer["Location"].startswith(reverse("admin:login"))
    index = nobody_in_particular.get(reverse("admin:index"))
    assert b"deliveries due" not in index.content


def test_a_page_that_is_refused_or_not_there_says_so_and_leads_back(db: None, viewer: Client) -> None:
    home = reverse("admin:index")
    for path, status, title in ((list_url(User), 403, "Not allowed"), (f"{home}nothing/", 404, "Not found")):
        answer = viewer.get(path)
        assert answer.status_code == status
        page = answer.content.decode()
        assert f"<h1>{title}</h1>" in page
        assert f'<a href="{home}">' in page
        assert answer["X-Request-Id"] in page
    outside = Client().get("/nothing", headers={"Accept": "text/html"})
    assert outside.status_code == 404
    assert home not in outside.content.decode(), "nobody is told where the admin is"


def test_a_name_that_turns_the_text_round_is_spelled_out_in_titles_and_links(world: World, owner: Client) -> None:
    name = "Acme\u202e\u200bgnp.exe"
    Organization.objects.filter(pk=world.organization.pk).update(name=name)
    ApiKey.objects.filter(pk=world.key.pk).update(name=name)
    for row in world.rows():
        page = re.sub(r"<input[^>]*>", "", owner.get(page_url(row)).content.decode())
        assert not re.search("[\u202e\u200b]", page), row
        assert "Acme\\u202e\\u200bgnp.exe" in page or row in {world.attempt, world.event_type}, row


def test_a_list_without_rows_says_so(db: None, viewer: Client) -> None:
    assert "There are no bulk runs yet." in viewer.get(list_url(BulkRun)).content.decode()
    page = viewer.get(list_url(AuditEntry, q="nothing-has-this")).content.decode()
    assert "No audit entries match." in page


def test_every_filter_of_every_list_opens(world: World, operator: Client) -> None:
    followed = 0
    for model in set(admin.site._registry) - FOR_OWNERS:
        page = operator.get(list_url(model))
        for spec in page.context["cl"].filter_specs:
            for choice in spec.choices(page.context["cl"]):
                answer = operator.get(list_url(model) + choice["query_string"])
                assert answer.status_code == 200, (model, choice)
                assert "e=1" not in answer.request["QUERY_STRING"]
                followed += 1
    assert followed > 40


def test_filters_keep_what_they_name(world: World, operator: Client, other_organization: Organization) -> None:
    make_event(other_organization)

    def count(model: type, **query: object) -> int:
        return len(operator.get(list_url(model, **query)).context["cl"].result_list)

    assert count(Delivery) == 6
    for status in world.deliveries:
        assert count(Delivery, status=status) == 1
    assert count(Delivery, status="failed-1h") == count(Delivery, status="failed-24h") == 1
    Delivery.objects.filter(status="failed").update(completed_at="2026-01-01T00:00:00Z")
    assert count(Delivery, status="failed-24h") == 0
    assert count(Delivery, event=world.event.pk) == 1
    assert count(Delivery, subscription=world.subscription.pk) == 6
    assert count(Delivery, subscription=nobody()) == 0
    assert count(Delivery, organization=other_organization.pk) == 0
    assert count(Delivery, created="15m") == 6
    event_model = type(world.event)
    assert count(event_model, organization=world.organization.pk) == 7
    assert count(event_model, organization=other_organization.pk) == 1
    assert count(event_model, status="error") == 1
    assert count(DeliveryAttempt, outcome="failed") == count(DeliveryAttempt, delivery=world.attempt.delivery_id) == 1
    assert count(DeliveryAttempt, delivery=world.deliveries["delivered"].pk) == 0
    assert count(ApiKey, state="live") == 1
    assert count(ApiKey, state="revoked") == 0
    assert count(Subscription, state="active") == 1
    assert count(Subscription, state="disabled") == count(Subscription, state="deleted") == 0
    assert count(Subscription, state="failing") == 0
    assert count(BulkRun, kind="recover", state="running") == 1
    assert count(BulkRun, kind="replay") == 0
    assert count(AuditEntry, organization=world.organization.pk) == 1


def test_an_event_leads_to_its_deliveries_their_attempts_and_back(world: World, viewer: Client) -> None:
    delivery = world.deliveries["failed"]
    event_page = viewer.get(page_url(world.event)).content.decode()
    assert f'href="{page_url(delivery)}"' in event_page
    assert f'href="{page_url(world.subscription)}"' in event_page
    delivery_page = viewer.get(page_url(delivery)).content.decode()
    for row in (world.event, world.subscription, world.organization, world.attempt):
        assert f'href="{page_url(row)}"' in delivery_page
    attempt_page = viewer.get(page_url(world.attempt)).content.decode()
    for row in (delivery, world.event, world.subscription):
        assert f'href="{page_url(row)}"' in attempt_page
    subscription_page = viewer.get(page_url(world.subscription)).content.decode()
    assert list_url(Delivery, subscription=world.subscription.pk, status="failed").replace("&", "&amp;") in (
        subscription_page
    )
    run_page = viewer.get(page_url(world.run)).content.decode()
    assert f'href="{page_url(world.subscription)}"' in run_page
    index = viewer.get(reverse("admin:index")).content.decode()
    assert reverse("django_rq:home") in index


def test_a_subscription_s_page_shows_times_to_the_second_and_a_dash_for_none(world: World, viewer: Client) -> None:
    subscription = Subscription.objects.get(queue__isnull=False, url=URL)
    when = datetime.datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=datetime.UTC)
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(
        last_success_at=when, paused_until=None, has_backlog=True
    )
    page = viewer.get(page_url(subscription)).content.decode()
    assert "2026-03-04 05:06:07 (" in page
    assert ">None<" not in page
    assert "has backlog: the last claim left some</th><td>yes<" in page


def test_why_a_delivery_failed_stands_in_the_list_and_on_its_page(world: World, viewer: Client) -> None:
    listed = viewer.get(list_url(Delivery, status="failed")).content.decode()
    assert "HTTP 500" in listed
    page = viewer.get(page_url(world.deliveries["failed"])).content.decode()
    assert "HTTP 500" in page
    assert "answered 500 Internal Server Error" in page
    assert "out of order" in page
    error = viewer.get(list_url(type(world.event), status="error")).content.decode()
    assert "ValueError: no way" in error
    assert "ValueError: no way" in viewer.get(page_url(world.error_event)).content.decode()


def test_payload_and_answer_are_indented_with_every_digit_as_it_was_sent(world: World, viewer: Client) -> None:
    data = '{"big":12345678901234567890123,"price":1.10,"nested":{"a":[1,2]},"text":"<b>&amp;"}'
    event = make_event(world.organization, data=data)
    page = viewer.get(page_url(event)).content.decode()
    assert "&quot;big&quot;: 12345678901234567890123,\n  &quot;price&quot;: 1.10,\n" in page
    assert "&quot;a&quot;: [\n      1,\n      2\n" in page
    assert "&lt;b&gt;&amp;amp;" in page
    attempt = make_attempt(world.deliveries["failed"], 2, response_body=json.dumps({"why": {"code": 7}}))
    assert "&quot;code&quot;: 7" in viewer.get(page_url(attempt)).content.decode()


@pytest.mark.parametrize("group", ["viewer", "operator", "owner", "superuser"])
def test_no_page_shows_a_secret(world: World, staff: Staff, group: str) -> None:
    world.subscription.refresh_from_db()
    secrets = [
        HEADER_SECRET, world.secret, world.secret.removeprefix("whsec_"), world.key_text.split("_", 2)[2],
        world.subscription.encrypted_secret, world.subscription.encrypted_headers, bytes(world.key.secret_hash).hex(),
    ]  # fmt: skip
    assert all(secrets)
    client = staff(group)
    for row in world.rows():
        for url in (list_url(row), page_url(row), page_url(row, "history")):
            text = client.get(url, follow=True).content.decode()
            assert URL in text or type(row) is not Subscription or url.endswith("/history/")
            assert not [secret for secret in secrets if secret in text], url
