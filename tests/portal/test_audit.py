"""Nothing that a session does happens without its audit entry, which names the session."""

from __future__ import annotations

from typing import Any

from orgs.models import AuditEntry
from portal.models import PortalSession
from tests.portal.conftest import Visitor, path_in
from tests.portal.routes import CHANGES
from tests.security.test_audit_transactions import everything, refused  # noqa: F401 - a fixture
from webhooks import subscriptions

# In an order in which each finds what it changes.
ORDER = ("new", "edit", "test", "disable", "enable", "secret", "recover", "retry", "skip", "delete", "close")
FORMS = sorted([*CHANGES, ("portal/close", {})], key=lambda form: ORDER.index(form[0].rpartition("/")[2]))


def test_nothing_changes_without_its_entry(visitor: Visitor, rows: dict[str, Any], request: Any) -> None:
    disabled, _ = subscriptions.create(
        PortalSession.objects.get().organization_id, url="https://d.example/", event_types=["*"]
    )
    subscriptions.disable(disabled)
    request.getfixturevalue("refused")
    before = everything()
    for route, fields in FORMS:
        of = {**rows, "endpoint_id": disabled.pk} if route.endswith("/enable") else rows
        assert visitor.post(path_in(route, of), **(fields or {})).status_code == 500, route
        assert everything() == before, route


def test_each_entry_names_the_session(visitor: Visitor, rows: dict[str, Any]) -> None:
    actor = f"portal:{PortalSession.objects.get().pk}"
    for route, fields in FORMS:
        before = set(AuditEntry.objects.values_list("pk", flat=True))
        assert visitor.post(path_in(route, rows), **(fields or {})).status_code in {200, 302}, route
        assert AuditEntry.objects.exclude(pk__in=before).get().actor == actor, route
