"""The credentials of a subscription on its page in the admin: entered, replaced, removed, and never shown again."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
import trustme
from django.test import Client
from django.urls import reverse

from core.encryption import decrypt
from devstack.http_receiver import Receiver, Response
from orgs.models import AuditEntry
from tests.console.rows import World, act, ask, list_url, page_url, said
from tests.console.test_subscription_formats import form
from tests.webhooks.test_client_certificates import parts
from webhooks import signing_secrets, subscriptions
from webhooks.destinations.http.auth import Basic, ClientCredentials, open_auth
from webhooks.models import Subscription

pytestmark = pytest.mark.django_db
OWN = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PRIVATE = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="


@pytest.fixture(scope="module")
def certificate() -> tuple[str, str]:
    return parts(trustme.CA().issue_cert("shop.example", common_name="the-shop"))


def test_authorization_is_set_kept_changed_and_removed(owner: Client, world: World) -> None:
    row = world.subscription
    page = page_url(row)
    basic = {"auth_kind": "basic", "auth_username": "shop", "auth_password": "hidden-pass"}
    basic["auth_client_authentication"] = "header"  # as the page's form sends it
    answer = owner.post(page, form(row, **basic))
    assert answer.status_code == 302, answer.content.decode()[:2000]
    row.refresh_from_db()
    assert open_auth(row.encrypted_auth) == Basic("shop", "hidden-pass")
    assert AuditEntry.objects.get(action="subscription.change").detail == {
        "fields": ["Authorization", "Password", "User name"]
    }
    # A form that says nothing of it keeps it, and no page tells it.
    assert owner.post(page, form(row, description="new", auth_kind="")).status_code == 302
    row.refresh_from_db()
    assert row.auth_type == "basic"
    for url in (page, list_url(row), page + "?span=1h", f"{list_url(row)}export/?format=csv"):
        assert "hidden-pass" not in owner.get(url, follow=True).content.decode()
    oauth = {
        "auth_kind": "oauth2", "auth_token_url": "https://login.example/token", "auth_client_id": "app",
        "auth_client_secret": "hidden-secret", "auth_scope": "", "auth_client_authentication": "body",
    }  # fmt: skip
    refused = owner.post(page, form(row, **{**oauth, "auth_token_url": "http://127.0.0.1:25/"}))
    assert "port 25 is not allowed" in refused.content.decode()
    assert "hidden-secret" not in refused.content.decode()
    assert owner.post(page, form(row, **oauth)).status_code == 302
    row.refresh_from_db()
    assert open_auth(row.encrypted_auth) == ClientCredentials(
        "https://login.example/token", "app", "hidden-secret", client_authentication="body"
    )
    assert owner.post(page, form(row, auth_kind="none")).status_code == 302
    row.refresh_from_db()
    assert (row.encrypted_auth, row.auth_type) == ("", "")


def test_a_client_certificate_is_set_shown_without_its_key_and_removed(
    owner: Client, viewer: Client, world: World, certificate: tuple[str, str]
) -> None:
    subscriptions.change(world.subscription, {"url": "https://a.example/"})
    row, (chain, key) = world.subscription, certificate
    page = page_url(row)
    refused = owner.post(page, form(row, certificate=chain, certificate_key=""))
    assert "private_key: is required" in refused.content.decode()
    other = parts(trustme.CA().issue_cert("other.example"))[1]
    refused = owner.post(page, form(row, certificate=chain, certificate_key=other))
    assert "is not the key of the first certificate" in refused.content.decode()
    assert "PRIVATE KEY-----\n" not in refused.content.decode()
    assert owner.post(page, form(row, certificate=chain, certificate_key=key)).status_code == 302
    row.refresh_from_db()
    assert "PRIVATE KEY" in decrypt(row.encrypted_client_certificate)
    shown = viewer.get(page).content.decode()
    assert "CN=the-shop" in shown
    assert key.splitlines()[1] not in shown + owner.get(page).content.decode()
    expired = {**row.client_certificate_details, "expires_at": datetime.datetime.now(datetime.UTC).isoformat()}
    Subscription.objects.update(client_certificate_details=expired)
    assert "expired " in viewer.get(page).content.decode()
    assert owner.post(page, form(row, remove_certificate="on")).status_code == 302
    row.refresh_from_db()
    assert (row.encrypted_client_certificate, row.client_certificate_details) == ("", None)


def test_the_second_signature_header_is_checked_as_in_the_api(owner: Client, world: World) -> None:
    row = world.subscription
    refused = owner.post(page_url(row), form(row, signature_header="Connection"))
    assert "is set by the system" in refused.content.decode()
    assert owner.post(page_url(row), form(row, signature_header="X-Shop-Signature")).status_code == 302
    row.refresh_from_db()
    assert row.signature_header == "X-Shop-Signature"


def test_a_new_subscription_may_bring_its_secret_and_credentials(owner: Client, world: World) -> None:
    add = reverse("admin:webhooks_subscription_add")
    new: dict[str, Any] = {
        "organization": str(world.organization.pk), "url": "https://new.example/", "event_types_text": "*",
        "secret_type": "hmac-sha256",
    }  # fmt: skip
    refused = owner.post(add, {**new, "own_secret": "whsec_short"})
    assert "errorlist" in refused.content.decode()
    assert "whsec_short" not in refused.content.decode()
    answer = owner.post(
        add, {**new, "own_secret": OWN, "auth_kind": "bearer", "auth_token": "hidden-token"}, follow=True
    )
    assert OWN not in answer.content.decode()
    made = Subscription.objects.get(url="https://new.example/")
    assert (decrypt(made.encrypted_secret), made.auth_type) == (OWN, "bearer")
    answer = owner.post(add, {**new, "url": "https://b.example/", "secret_type": "ed25519"}, follow=True)
    assert re.search(r"public key is whpk_", said(answer))
    assert "whsk_" not in answer.content.decode()


def test_a_secret_is_added_listed_and_removed(owner: Client, viewer: Client, world: World) -> None:
    row = world.subscription
    assert "hmac-sha256" in ask(owner, "add_secret", [row]).content.decode()
    answer = act(owner, "add_secret", [row], secret_type="hmac-sha256", ends="86400")
    shared = re.search(r'id="secret">(whsec_[^<]+)<', answer.content.decode())[1]  # type: ignore[index]
    own = act(owner, "add_secret", [row], secret_type="hmac-sha256", own_secret=PRIVATE, ends="0")
    assert PUBLIC in said(own)
    assert PRIVATE not in own.content.decode()
    wrong = act(owner, "add_secret", [row], secret_type="hmac-sha256", own_secret="whsec_x", ends="0")
    assert "a secret is base64" in wrong.content.decode()
    again = act(owner, "add_secret", [row], secret_type="hmac-sha256", own_secret=PRIVATE, ends="0")
    assert "has this secret already" in said(again)
    row.refresh_from_db()
    stored = signing_secrets.stored_secrets(row)
    assert [secret.public_key for secret in stored] == [None, PUBLIC, None]
    shown = viewer.get(page_url(row)).content.decode()
    assert PUBLIC in shown
    assert [f"…{str(secret.id)[-6:]}" in shown for secret in stored] == [True] * 3
    assert shared not in shown
    first = str(stored[0].id)
    assert "was removed" in said(act(owner, "remove_secret", [row], secret=first))
    last = act(owner, "remove_secret", [row], secret=str(stored[1].id))
    assert "only secret that doesn" in said(last)
    row.refresh_from_db()
    assert [secret.id for secret in signing_secrets.stored_secrets(row)] == [stored[1].id, stored[2].id]
    entries = AuditEntry.objects.filter(action__startswith="subscription.").order_by("id")
    assert [entry.action for entry in entries] == [
        "subscription.add_secret", "subscription.add_secret", "subscription.remove_secret",
    ]  # fmt: skip
    rotated = act(owner, "rotate_secret", [row], overlap="0")
    assert "public key is whpk_" in said(rotated)
    assert "whsk_" not in rotated.content.decode()


@pytest.mark.django_db(transaction=True)
def test_a_handshake_is_made_before_the_transaction_that_saves(
    owner: Client, viewer: Client, world: World, receiver: Receiver
) -> None:
    add = reverse("admin:webhooks_subscription_add")
    new = {
        "organization": str(world.organization.pk), "url": receiver.url("/hook"), "event_types_text": "*",
        "description": "asked", "format": "standard", "ordered_on_failure": "skip", "handshake": "on",
    }  # fmt: skip
    refused = owner.post(add, new)
    assert "didn&#x27;t confirm. The endpoint&#x27;s response had no X-Hook-Secret." in refused.content.decode()
    assert not Subscription.objects.filter(description="asked").exists()

    receiver.behavior = lambda request, number: Response(
        headers={"X-Hook-Secret": request.headers.get("x-hook-secret", "")}
    )
    answer = owner.post(add, {**new, "auth_kind": "bearer", "auth_token": "t0ken-of-the-endpoint"})
    assert answer.status_code == 200, "the page with the new secret"
    assert receiver.requests[-1].headers["authorization"] == "Bearer t0ken-of-the-endpoint"
    row = Subscription.objects.get(description="asked")
    assert AuditEntry.objects.get(action="subscription.create").detail == {"handshake": True}

    # A change asks at the new URL, with the credentials that it keeps; one that nobody may make asks nobody.
    assert owner.post(page_url(row), form(row, url=receiver.url("/new"), handshake="on")).status_code == 302
    asked = receiver.requests[-1]
    assert (asked.path, asked.headers["authorization"]) == ("/new", "Bearer t0ken-of-the-endpoint")
    assert AuditEntry.objects.get(action="subscription.change").detail["handshake"] is True
    before = len(receiver.requests)
    assert viewer.post(page_url(row), form(row, description="x", handshake="on")).status_code == 403
    assert owner.post(page_url(row), form(row, url="not a url", handshake="on")).status_code == 200
    row.refresh_from_db()
    assert "goes with a change" in owner.post(page_url(row), form(row, handshake="on")).content.decode()
    assert owner.post(page_url(row), form(row, description="without")).status_code == 302
    assert len(receiver.requests) == before
