"""The admin's pages for event types."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from events.models import EventType
from orgs.models import AuditEntry
from tests.console.rows import World

pytestmark = pytest.mark.django_db


def form(world: World, **values: Any) -> dict[str, Any]:
    """Return what the form sends."""
    good = {"organization": str(world.organization.pk), "name": "order.paid", "schema": '{"type": "object"}'}
    return {**good, "description": "", "examples": "[]", **values}


def test_types_are_made_changed_and_archived(owner: Client, world: World) -> None:
    add = reverse("admin:events_eventtype_add")
    assert owner.post(add, form(world)).status_code == 302
    made = EventType.objects.get(name="order.paid")
    page = reverse("admin:events_eventtype_change", args=[made.pk])
    values = {"schema": '{"type": "string"}', "archived": "on", "description": "x", "examples": '["a"]'}
    assert owner.post(page, values).status_code == 302
    made.refresh_from_db()
    assert (made.version, made.archived, made.schema, made.examples) == (2, True, {"type": "string"}, ["a"])
    world.organization.refresh_from_db()
    assert world.organization.catalog_version == 2
    actions = list(AuditEntry.objects.filter(target=str(made.pk)).values_list("action", flat=True))
    assert sorted(actions) == ["event_type.change", "event_type.create"]


BAD = [{"name": "a b"}, {"schema": '{"$ref": "http://a.example/"}'}, {"schema": "nonsense"}, {"examples": "{}"},
       {"name": "order.created"}]  # fmt: skip


@pytest.mark.parametrize("values", BAD)
def test_the_form_refuses_what_the_api_refuses(owner: Client, world: World, values: dict[str, Any]) -> None:
    answer = owner.post(reverse("admin:events_eventtype_add"), form(world, **values))
    assert answer.status_code == 200
    assert "errorlist" in answer.content.decode()
    assert EventType.objects.count() == 1


def test_the_strictness_is_set_on_the_organization_s_page(owner: Client, world: World) -> None:
    row = world.organization
    values = {"name": row.name, "is_active": "on", "events_per_minute": "1", "retention_days": "1",
              "event_type_strictness": "known"}  # fmt: skip
    answer = owner.post(reverse("admin:orgs_organization_change", args=[row.pk]), values)
    assert answer.status_code == 302, answer.content.decode()[:3000]
    row.refresh_from_db()
    assert (row.event_type_strictness, row.catalog_version) == ("known", 1)


def test_one_type_too_many_is_an_error_of_the_form(owner: Client, world: World, settings: Any) -> None:
    settings.MAX_EVENT_TYPES = 0
    answer = owner.post(reverse("admin:events_eventtype_add"), form(world))
    assert answer.status_code == 200
    assert "which is the limit" in answer.content.decode()
    assert not EventType.objects.filter(name="order.paid").exists()
