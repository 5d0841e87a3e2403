"""The admin's pages for organizations."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from console.formatting import badge, list_link, short
from console.tenant_admin import TenantAdmin
from core.ids import parse_id
from orgs.models import Organization


@admin.register(Organization)
class OrganizationAdmin(TenantAdmin):
    """Tenants and their limits."""

    audit_word = "organization"
    list_display = ("name_shown", "state", "events_per_minute", "retention_days", "created_at")
    search_fields = ("name",)
    search_help_text = "The beginning of a name, or an id."
    ordering = ("name",)
    fields = ("name", "is_active", "events_per_minute", "retention_days", "id", "created_at", "rows")
    readonly_fields = ("id", "created_at", "rows")

    @admin.display(description="name")
    def name_shown(self, row: Organization) -> str:
        """Return the name with invisible characters shown."""
        return short(row.name)

    @admin.display(description="state")
    def state(self, row: Organization) -> SafeString:
        """Return whether the organization may call."""
        return badge("active") if row.is_active else badge("disabled", "inactive")

    @admin.display(description="its rows")
    def rows(self, row: Organization) -> SafeString | str:
        """Return links to everything of the organization."""
        if row._state.adding:
            return "-"
        return format_html_join(
            " · ",
            "{}",
            (
                (list_link(model, label, organization=row.pk, **more),)
                for model, label, more in (
                    ("events_event", "events", {}),
                    ("events_event", "events in error", {"status": "error"}),
                    ("webhooks_delivery", "deliveries", {}),
                    ("webhooks_delivery", "failed deliveries", {"status": "failed"}),
                    ("webhooks_subscription", "subscriptions", {}),
                    ("webhooks_bulkrun", "bulk runs", {}),
                    ("orgs_apikey", "API keys", {}),
                    ("orgs_auditentry", "audit entries", {}),
                )
            ),
        )

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id or the beginning of the name; both have an index."""
        row_id = parse_id(term)
        return queryset.filter(pk=row_id) if row_id else queryset.filter(name__startswith=term)
