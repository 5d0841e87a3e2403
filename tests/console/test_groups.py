"""The three staff groups: made by a migration, least privilege first, described as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.contrib.auth.models import Group

DOCS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
EDITABLE = {"organization", "apikey", "subscription", "user", "eventtype"}


def permissions_of(name: str) -> set[str]:
    """Return a group's permissions."""
    rows = Group.objects.get(name=name).permissions.values_list("content_type__app_label", "codename")
    return {f"{label}.{codename}" for label, codename in rows}


def test_each_group_may_do_what_the_lesser_one_may_and_more(db: None) -> None:
    viewer, operator, owner = (permissions_of(name) for name in ("viewer", "operator", "owner"))
    assert viewer < operator < owner
    assert all(".view_" in permission for permission in viewer)
    assert operator - viewer == {
        "events.reprocess_event", "webhooks.manage_delivery", "webhooks.switch_subscription",
        "portal.end_portalsession",
    }  # fmt: skip
    for permission in owner - operator:
        verb, _, model = permission.partition(".")[2].partition("_")
        assert verb in {"view", "revoke"} or model in EDITABLE, permission
    assert "auth.delete_user" not in owner
    assert not {name for name in owner if "group" in name and "view" not in name}
    assert not {name for name in owner if "delete" in name} - {"webhooks.delete_subscription"}


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["viewer", "operator", "owner"])
def test_the_table_of_groups_in_the_docs_is_what_the_migration_makes(name: str) -> None:
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([^|]*) \|", DOCS.read_text(), re.MULTILINE)
    assert rows, "docs/operations.md has no table of permissions"
    assert {permission for permission, groups in rows if name in groups.split(", ")} == permissions_of(name)
