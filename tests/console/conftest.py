"""Members of staff, and what they look at."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client

from orgs.models import Organization
from tests.console.rows import World, make_world

Staff = Callable[[str], Client]


@pytest.fixture(autouse=True)
def _groups(db: None) -> None:
    """Make the groups again when a test that commits has emptied the database since the migration made them."""
    if not Group.objects.exists():
        editor = SimpleNamespace(connection=connection)
        import_module("orgs.migrations.0002_staff").make_groups(apps, editor)
        import_module("portal.migrations.0002_staff").add_permissions(apps, editor)


@pytest.fixture
def world(organization: Organization) -> World:
    """Return something of everything."""
    return make_world(organization)


@pytest.fixture
def staff(db: None) -> Staff:
    """Return a function from a group's name (or `superuser`, `nobody`) to the browser of a member of it."""

    def log_in(group: str) -> Client:
        user = User(username=f"{group}-1", is_staff=True, is_superuser=group == "superuser")
        user.set_unusable_password()
        user.save()
        if group not in {"superuser", "nobody"}:
            user.groups.add(Group.objects.get(name=group))
        client = Client(raise_request_exception=False)
        client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
        return client

    return log_in


@pytest.fixture
def operator(staff: Staff) -> Client:
    """Return an operator's browser."""
    return staff("operator")


@pytest.fixture
def owner(staff: Staff) -> Client:
    """Return an owner's browser."""
    return staff("owner")


@pytest.fixture
def viewer(staff: Staff) -> Client:
    """Return a viewer's browser."""
    return staff("viewer")
