"""The event types of the organization's catalog, with what a webhook of each looks like."""

from __future__ import annotations

import uuid
from typing import Any

import orjson
from django.http import HttpRequest, HttpResponse

from core.safe_text import visible
from events import event_types
from events.models import EventType
from orgs.scopes import Scope
from portal.web import PortalView
from webhooks.display.formatting import code_block

MAX_SHOWN = 500


def example_of(row: EventType) -> str:
    """Return a webhook's body with the type's first example, or without data if it has none."""
    examples: Any = row.examples
    data = examples[0] if isinstance(examples, list) and examples else {}
    body = {"id": str(uuid.UUID(int=0)), "type": row.name, "timestamp": "2026-01-31T12:00:00Z", "data": data}
    return orjson.dumps(body).decode()


class EventTypesView(PortalView):
    """All types that aren't archived, by name."""

    section = "event_types"
    needs = Scope.EVENTS_READ

    def get(self, request: HttpRequest) -> HttpResponse:
        rows = event_types.of_organization(self.portal.organization_id).filter(archived_at=None).order_by("name")
        shown = [
            {
                "name": visible(row.name),
                "description": visible(row.description),
                "example": code_block(example_of(row), "Example"),
                "schema": code_block(orjson.dumps(row.schema).decode(), "Schema") if row.schema else "",
            }
            for row in rows[:MAX_SHOWN]
        ]
        return self.page("event_types.html", types=shown)
