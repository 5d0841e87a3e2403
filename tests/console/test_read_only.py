"""Facts stay facts: nobody edits or deletes events, deliveries, attempts, runs and the audit log."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.forms.models import model_to_dict
from django.urls import reverse

from orgs.models import AuditEntry
from tests.console.conftest import Staff
from tests.console.rows import World, act, list_url, page_url
from webhooks import subscriptions
from webhooks.models import Subscription


@pytest.mark.parametrize("group", ["viewer", "operator", "owner", "superuser"])
def test_read_only_rows_cannot_be_added_changed_or_deleted(world: World, staff: Staff, group: str) -> None:
    client = staff(group)
    for row in (world.event, world.deliveries["failed"], world.attempt, world.run, world.entry):
        row.refresh_from_db()
        before = model_to_dict(row)
        model = type(row)
        form = {
            "type": "x",
            "status": "processed",
            "number": "9",
            "kind": "replay",
            "actor": "user:me",
            "_save": "Save",
        }
        assert client.post(page_url(row), form).status_code == 403
        assert client.post(page_url(row, "delete"), {"post": "yes"}).status_code == 403
        add = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add")
        assert client.post(add, form).status_code == 403
        assert act(client, "delete_selected", [row], post="yes").status_code == 200
        row.refresh_from_db()
        assert model_to_dict(row) == before
        page = client.get(page_url(row)).content.decode()
        assert 'name="_save"' not in page
        assert "deletelink" not in page


def test_a_deleted_subscription_is_only_looked_at_and_its_row_stays(world: World, staff: Staff) -> None:
    owner = staff("owner")
    page = owner.get(page_url(world.subscription, "delete"))
    assert page.status_code == 200
    answer = owner.post(page_url(world.subscription, "delete"), {"post": "yes"}, follow=True)
    assert answer.status_code == 200
    world.subscription.refresh_from_db()
    assert world.subscription.deleted_at is not None
    assert world.subscription.encrypted_secret == ""
    world.deliveries["pending"].refresh_from_db()
    assert world.deliveries["pending"].status == "cancelled"
    assert AuditEntry.objects.get(action="subscription.delete").actor == "user:owner-1"
    assert owner.post(page_url(world.subscription), {"url": "http://127.0.0.1:9/b"}).status_code == 403
    assert owner.post(page_url(world.subscription, "delete"), {"post": "yes"}).status_code == 403


def test_only_owners_delete_a_subscription(world: World, staff: Staff) -> None:
    for group in ("viewer", "operator"):
        assert staff(group).post(page_url(world.subscription, "delete"), {"post": "yes"}).status_code == 403
    assert Subscription.objects.get().deleted_at is None


def test_an_owner_cannot_raise_anybody_above_owner(world: World, staff: Staff) -> None:
    owner, boss = staff("owner"), User.objects.create_superuser("boss", password="correct horse battery")
    assert owner.post(page_url(boss), {"username": "boss"}).status_code == 403
    changed = owner.get(reverse("admin:auth_user_password_change", args=[boss.pk]))
    assert changed.status_code == 403
    own = User.objects.get(username="owner-1")
    answer = owner.post(
        page_url(own),
        {"username": "owner-1", "is_active": "on", "is_staff": "on", "is_superuser": "on",
         "user_permissions": ["1"], "groups": [str(own.groups.get().pk)]},
    )  # fmt: skip
    assert answer.status_code == 302
    own.refresh_from_db()
    assert not own.is_superuser
    assert not own.user_permissions.exists()
    assert AuditEntry.objects.filter(action="user.change", actor="user:owner-1").exists()


def test_the_form_of_a_subscription_is_judged_as_the_api_does(world: World, staff: Staff) -> None:
    owner = staff("owner")
    add = reverse("admin:webhooks_subscription_add")
    base = {
        "organization": str(world.organization.pk),
        "url": "http://127.0.0.1:8009/new",
        "event_types_text": "a.b\n*",
    }
    for wrong, word in (
        ({"url": "ftp://x/"}, "url"), ({"event_types_text": "a b*c"}, "event_types_text"),
        ({"headers_text": "no colon"}, "headers_text"), ({"headers_text": "Host: x"}, "headers_text"),
        ({"max_in_flight": "0"}, "max_in_flight"), ({"deliveries_per_second": "-1"}, "deliveries_per_second"),
        ({"organization": "x"}, "organization"), ({"url": "http://10.0.0.1/"}, "url"),
    ):  # fmt: skip
        answer = owner.post(add, {**base, **wrong})
        assert answer.status_code == 200, wrong
        assert word in answer.context["adminform"].form.errors, (wrong, answer.context["adminform"].form.errors)
    assert Subscription.objects.count() == 1
    made = owner.post(add, {**base, "headers_text": "X-A: 1\nX-B: two: parts"})
    assert made.status_code == 200
    assert "adminform" not in made.context, made.context["adminform"].form.errors
    row = Subscription.objects.exclude(pk=world.subscription.pk).get()
    secret = made.context["secret"]
    assert secret.startswith("whsec_")
    assert "no-store" in made["Cache-Control"]
    assert (row.header_names, row.event_types) == (["X-A", "X-B"], ["a.b", "*"])
    assert secret not in owner.get(page_url(row)).content.decode()
    assert AuditEntry.objects.get(action="subscription.create").organization_id == world.organization.pk
    page = owner.get(page_url(row)).context["adminform"].form.initial
    changed = owner.post(page_url(row), {**base, "url": row.url, "event_types_text": page["event_types_text"],
                                         "description": "changed", "remove_headers": "on"})  # fmt: skip
    assert changed.status_code == 302
    row.refresh_from_db()
    assert (row.description, row.header_names) == ("changed", [])
    entry = AuditEntry.objects.get(action="subscription.change")
    assert "two: parts" not in str(entry.detail)


def test_a_key_is_shown_once_and_never_again(world: World, staff: Staff) -> None:
    owner = staff("owner")
    answer = owner.post(
        reverse("admin:orgs_apikey_add"),
        {"organization": str(world.organization.pk), "name": "till", "scopes": ["events:write"]},
    )
    key = answer.context["secret"]
    assert key in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    row = type(world.key).objects.get(name="till")
    assert row.scopes == ["events:write"]
    for url in (page_url(row), page_url(row, "history"), list_url(row), list_url(world.entry), reverse("admin:index")):
        text = owner.get(url).content.decode()
        assert key not in text
        assert key.split("_", 2)[2] not in text
    assert AuditEntry.objects.get(action="key.create", actor="user:owner-1").target == str(row.pk)
    again = owner.get(page_url(row)).context["adminform"].form.initial
    assert again["scopes"] == ["events:write"]
    for wrong in ({"scopes": []}, {"scopes": ["everything"]}, {"expires_at_0": "2020-01-01", "expires_at_1": "00:00"}):
        data = {"organization": str(world.organization.pk), "name": "x", "scopes": ["events:write"], **wrong}
        assert owner.post(reverse("admin:orgs_apikey_add"), data).context["adminform"].form.errors
    assert subscriptions.of_organization(world.organization.pk).count() == 1
