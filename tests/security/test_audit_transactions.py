"""Nothing happens without its audit entry: with the database refusing entries, nothing changes, whoever asks.

The walks below enumerate the API's routes, the admin's pages and actions, and our commands.  Each fails for one that it
doesn't know, so that a new one is looked at.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.core import serializers
from django.core.management import call_command, find_commands
from django.db import DatabaseError, connection, transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.test import Client
from django.urls import URLResolver, reverse
from django.utils import timezone

from orgs import audit
from orgs.keys import create_api_key, revoke
from orgs.models import ApiKey, AuditEntry, Organization
from tests.api.helpers import assert_problem
from tests.console.rows import World, list_url, make_delivery, make_world, page_url
from tests.security.test_tenancy import KNOWN, path_of
from tests.webhooks.helpers import accept, result, statuses, subscribe
from webhooks import signing_secrets, subscriptions
from webhooks.dispatch.claim import claim
from webhooks.dispatch.delivery import AttemptResult
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, DeliveryAttempt, DisabledCause, Subscription, SubscriptionQueue

PASSWORD = "correct horse battery staple"

# Events and deliveries are their own record, and a preview changes nothing.
NOT_AUDITED = {"api/events", "api/events/batch", "api/subscriptions/<uuid:subscription_id>/preview"}
OPERATIONS = [
    pytest.param(route, method, body, id=f"{method} {route}")
    for route, operations in KNOWN.items()
    for method, _, body in operations
    if method != "GET" and route not in NOT_AUDITED and not route.startswith("api/inbox")
]


REFUSE = (
    "SET CONSTRAINTS ALL IMMEDIATE",  # a table with checks still to come can't be altered
    "CREATE FUNCTION refuse_entry() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION 'no entries today'; END $$",
    "CREATE TRIGGER refused BEFORE INSERT ON orgs_auditentry FOR EACH ROW EXECUTE FUNCTION refuse_entry()",
)


def run_sql(*statements: str) -> None:
    """Run statements."""
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.fixture
def refused(db: None) -> None:
    """Make PostgreSQL refuse every new audit entry, until the end of the test's transaction."""
    run_sql(*REFUSE)


@pytest.fixture
def refused_in_every_transaction(transactional_db: None) -> Iterator[None]:
    """Make PostgreSQL refuse every new audit entry, also in transactions that are committed."""
    run_sql(*REFUSE)
    yield
    run_sql("DROP FUNCTION refuse_entry CASCADE")


def everything() -> str:
    """Return all rows of all tables but sessions, as text, without when a key was last used."""
    rows: list[Model] = []
    for model in apps.get_models():
        if model._meta.managed and model._meta.app_label not in {"sessions", "contenttypes"}:
            rows += model._default_manager.order_by("pk")
    for row in rows:
        if isinstance(row, ApiKey):
            row.last_used_at = None
    return serializers.serialize("json", rows)


def test_the_database_does_refuse_entries(refused: None) -> None:
    with pytest.raises(DatabaseError, match="no entries today"), transaction.atomic():
        audit.record("key.create", actor="key:a", organization_id=None)


# --- the API ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("route", "method", "body"), OPERATIONS)
def test_no_request_to_the_api_changes_anything_without_its_entry(
    api: Any,
    ids: dict[str, Any],
    request: Any,
    route: str,
    method: str,
    body: Any,
) -> None:
    if route.endswith("/enable"):
        subscriptions.disable(Subscription.objects.get(pk=ids["subscription_id"]))
    if route.endswith("/skip"):
        Delivery.objects.filter(pk=ids["delivery_id"]).update(ordering_key="key", ordered_at=timezone.now())
    request.getfixturevalue("refused")
    before = everything()
    assert_problem(api.request(method, path_of(route, ids), body), 500)
    assert everything() == before


# --- the admin --------------------------------------------------------------------------------------

# A model with these pages, and what its form for a new row is given.
NEW_ROWS: dict[str, dict[str, Any]] = {
    "orgs.organization": {"name": "New", "is_active": "on", "events_per_minute": "1", "retention_days": "1"},
    "orgs.apikey": {"organization": "ORGANIZATION", "name": "new", "scopes": ["events:write"]},
    "webhooks.subscription": {"organization": "ORGANIZATION", "url": "http://127.0.0.1:8080/", "event_types_text": "*"},
    "events.eventtype": {"organization": "ORGANIZATION", "name": "new.type"},
    "auth.user": {"username": "new", "usable_password": "true", "password1": PASSWORD, "password2": PASSWORD},
    "auth.group": {"name": "new"},
}
REGISTERED = [model for model in apps.get_models() if admin.site.is_registered(model)]
MODELS = [pytest.param(model, id=model._meta.label_lower) for model in REGISTERED]


@pytest.fixture
def root(db: None, settings: Any) -> Client:
    """Return a superuser's browser."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    user = User.objects.create_superuser("root", password=PASSWORD)
    client = Client(raise_request_exception=False)
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client


@pytest.fixture
def full(organization: Organization, root: Client) -> World:
    """Return rows of everything, in each state that an action is for."""
    world = make_world(organization)
    signing_secrets.add(world.subscription, audit=lambda added: None)
    world.subscription.refresh_from_db()
    disabled, _ = subscriptions.create(organization.pk, url="http://127.0.0.1:8081/", event_types=["*"])
    subscriptions.disable(disabled)
    stopped, _ = subscriptions.create(organization.pk, url="http://192.0.2.1/", event_types=["*"])
    subscriptions.disable_many([stopped.pk], DisabledCause.WITH_HOST, "stopped", audit=lambda rows: None)
    make_delivery(world.event, stopped, "held", ordering_key="key", ordered_at=timezone.now())
    User.objects.create_user("somebody", password=PASSWORD)
    Group.objects.create(name="spare")  # the ones of the migration don't survive a test with real transactions
    revoke(create_api_key(organization)[0])
    return world


# What any confirmation page asks for, and the actions that take one row.
CONFIRMED = {
    "index": "0", "post": "yes", "confirmed": "1", "reason": "a test", "scope": "all",
    "overlap": "86400", "since": "2025-01-01T00:00:00Z", "shown": "2025-01-01T00:00:00+00:00",
    "secret_type": "ed25519", "ends": "0",
}  # fmt: skip
FOR_ONE = {"retry_failed", "recover", "send_test", "rotate_secret", "add_secret", "remove_secret"}


def as_root() -> HttpRequest:
    """Return a request of the superuser's."""
    request = HttpRequest()
    request.user = User.objects.get(username="root")
    return request


def others(model: type[Model]) -> QuerySet[Any]:
    """Return the model's rows, except the superuser's own."""
    rows = model._default_manager.all()
    return rows.exclude(username="root") if model is User else rows


@pytest.mark.parametrize("model", MODELS)
def test_no_action_of_the_admin_changes_anything_without_its_entry(
    model: type[Model], full: World, root: Client, refused: None
) -> None:
    names = list(admin.site.get_model_admin(model).get_actions(as_root()))
    before = everything()
    for name in names:
        rows = [str(row.pk) for row in others(model)]
        if name in FOR_ONE:
            rows = [str(full.subscription.pk)]
        form = {"action": name, "_selected_action": rows, **CONFIRMED, "seen_at": timezone.now().isoformat()}
        form["secret"] = str(signing_secrets.stored_secrets(full.subscription)[1].id)
        answer = root.post(list_url(model), form)
        assert answer.status_code == 500, f"{name}: give it rows that it fits, or it goes without an entry"
        assert b"Traceback" not in answer.content
        assert everything() == before, name


def filled_in(form: Any) -> dict[str, Any]:
    """Return what a browser sends for a form that shows a row."""
    data: dict[str, Any] = {}
    for name in form.fields:
        value = form[name].value()
        if isinstance(value, datetime.datetime):
            value = value.replace(tzinfo=None)
        if name.endswith(("last_login", "date_joined")) or value is None or value is False:
            continue
        widgets = getattr(form.fields[name].widget, "widgets", None) or getattr(
            getattr(form.fields[name].widget, "widget", None), "widgets", None
        )
        if widgets:
            data.update({f"{name}_{at}": part for at, part in enumerate(str(value).split(" "))})
        else:
            data[name] = "on" if value is True else value
    return data


@pytest.mark.parametrize("model", MODELS)
def test_no_form_of_the_admin_changes_anything_without_its_entry(
    model: type[Model], full: World, root: Client, refused: None
) -> None:
    page = admin.site.get_model_admin(model)
    request = as_root()
    before = everything()
    if page.has_add_permission(request):
        given = NEW_ROWS[model._meta.label_lower]
        given = {name: str(full.organization.pk) if value == "ORGANIZATION" else value for name, value in given.items()}
        answer = root.post(reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add"), given)
        assert answer.status_code == 500, answer.context["adminform"].errors if answer.context else answer.status_code
        assert everything() == before
    row = others(model).first()
    assert row is not None
    if page.has_change_permission(request, row):
        shown = root.get(page_url(row))
        answer = root.post(page_url(row), filled_in(shown.context["adminform"].form))
        assert answer.status_code == 500, answer.context["adminform"].errors if answer.context else answer.status_code
        assert everything() == before
    if page.has_delete_permission(request, row):
        assert root.post(page_url(row, "delete"), {"post": "yes"}).status_code == 500
        assert everything() == before


# Pages of the admin that are no model's, and change something.
OWN_PAGES = {"login", "logout", "password_change"}
# These change nothing, or nothing in PostgreSQL (django-rq's jobs, which RQ keeps in Redis).
HARMLESS = {"index", "password_change_done", "jsi18n", "autocomplete", "app_list", "home_live", "export_progress", None}


def _names(routes: list[Any]) -> Iterator[str | None]:
    for route in routes:
        if isinstance(route, URLResolver):
            yield from _names(route.url_patterns)
        else:
            yield route.name


def test_the_walk_knows_every_page_of_the_admin() -> None:
    names = set(_names(admin.site.get_urls()))
    of_models = {
        f"{model._meta.app_label}_{model._meta.model_name}_{page}"
        for model in REGISTERED
        for page in ("changelist", "add", "history", "delete", "change")
    }
    assert names - of_models - HARMLESS == OWN_PAGES | {"auth_user_password_change"}


def test_nobody_logs_in_or_out_or_gets_another_password_without_its_entry(
    full: World, root: Client, refused: None
) -> None:
    before = everything()
    passwords = {"new_password1": "x" + PASSWORD, "new_password2": "x" + PASSWORD}
    assert root.post(reverse("admin:password_change"), {"old_password": PASSWORD, **passwords}).status_code == 500
    somebody = User.objects.get(username="somebody")
    form = {"usable_password": "true", "password1": "x" + PASSWORD, "password2": "x" + PASSWORD}
    assert root.post(reverse("admin:auth_user_password_change", args=[somebody.pk]), form).status_code == 500
    assert root.post(reverse("admin:logout")).status_code == 500
    assert root.get(reverse("admin:index")).status_code == 200, "still logged in"
    anew = Client(raise_request_exception=False)
    assert anew.post(reverse("admin:login"), {"username": "root", "password": PASSWORD}).status_code == 500
    assert anew.get(reverse("admin:index")).status_code == 302, "not logged in"
    assert anew.post(reverse("admin:login"), {"username": "root", "password": "wrong"}).status_code == 500
    assert everything() == before


def test_a_change_of_ones_own_password_and_of_a_group_is_in_the_log(full: World, root: Client) -> None:
    passwords = {"new_password1": "x" + PASSWORD, "new_password2": "x" + PASSWORD}
    wrong = root.post(reverse("admin:password_change"), {"old_password": "wrong", **passwords})
    assert wrong.status_code == 200
    assert not AuditEntry.objects.filter(action="user.change").exists()
    root.post(reverse("admin:password_change"), {"old_password": PASSWORD, **passwords})
    entry = AuditEntry.objects.get(action="user.change")
    assert (entry.actor, entry.detail) == ("user:root", {"change": "own password"})
    root.post(reverse("admin:auth_group_add"), {"name": "new"})
    root.post(page_url(Group.objects.get(name="new"), "delete"), {"post": "yes"})
    found = AuditEntry.objects.filter(action__startswith="group.").order_by("created_at", "id")
    assert list(found.values_list("action", "target")) == [("group.create", "new"), ("group.delete", "new")]


# --- commands ---------------------------------------------------------------------------------------

COMMANDS: dict[str, list[str]] = {
    "create_org": ["New"],
    "create_api_key": ["Acme"],
    "replay_deliveries": ["--status", "failed"],
    "purge_expired": [],
    "rotate_encryption_keys": [],
}
# They send.
SENDERS = {"rqworker", "send_backlog"}


def our_commands() -> set[str]:
    """Return the management commands of our apps."""
    root = Path(__file__).resolve().parents[2]
    return {
        name
        for config in apps.get_app_configs()
        if Path(config.path).parent == root
        for name in find_commands(str(Path(config.path) / "management"))
    }


def test_the_walk_knows_every_command() -> None:
    assert our_commands() == set(COMMANDS) | SENDERS


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_changes_anything_without_its_entry(command: str, full: World, settings: Any, request: Any) -> None:
    request.getfixturevalue("refused_in_every_transaction")
    # Something for each of them to do.
    settings.SECRETS_ENCRYPTION_KEYS = [Fernet.generate_key().decode(), *settings.SECRETS_ENCRYPTION_KEYS]
    type(full.event).objects.filter(pk=full.event.pk).update(created_at=timezone.now() - datetime.timedelta(days=4000))
    before = everything()
    with pytest.raises(DatabaseError, match="no entries today"):
        call_command(command, *COMMANDS[command], stdout=io.StringIO(), stderr=io.StringIO())
    assert everything() == before


# --- what happens by itself -------------------------------------------------------------------------


def gone() -> list[AttemptResult]:
    """Claim what is due and answer it with 410."""
    return [result(one, 410) for one in claim(10).deliveries]


def test_an_automatic_disable_is_in_the_log(organization: Organization) -> None:
    subscription = subscribe(organization)
    accept(organization)
    record_results(gone())
    entry = AuditEntry.objects.get(action="subscription.disable")
    assert (entry.actor, entry.target, entry.organization_id) == (
        "system:worker",
        str(subscription.pk),
        organization.pk,
    )
    subscription.refresh_from_db()
    assert (entry.target_name, entry.reason) == (subscription.url, subscription.disabled_reason)


def test_no_automatic_disable_without_its_entry_and_the_attempt_is_recorded(
    organization: Organization, refused: None
) -> None:
    subscription = subscribe(organization)
    accept(organization)
    record_results(gone())
    subscription.refresh_from_db()
    assert subscription.is_active
    assert DeliveryAttempt.objects.get().status_code == 410
    assert SubscriptionQueue.objects.get().in_flight == 0
    # The delivery that would have waited for the disabled subscription goes on.
    assert statuses() == ["pending"]
    assert SubscriptionQueue.objects.get().next_due_at is not None
    assert Delivery.objects.get().next_attempt_at is not None


@pytest.mark.parametrize("word", ["disable", "delete"])
def test_what_was_done_already_leaves_no_second_entry(api: Any, word: str) -> None:
    made = api.post("/api/subscriptions", {"url": "https://a.example/", "event_types": ["*"]}).json()
    row = Subscription.objects.get(pk=made["id"])
    entries: list[str] = []
    for _ in range(2):
        getattr(subscriptions, word)(row, audit=lambda: entries.append(word))
    assert entries == [word]
