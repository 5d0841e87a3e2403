"""The admin's pages for organizations."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from console.formatting import badge, list_link, short
from console.model_admin import BoundedAdmin
from core.ids import parse_id
from orgs.models import Organization


@admin.register(Organization)
class OrganizationAdmin(BoundedAdmin):
    """Organizations and their limits."""

    audit_noun = "organization"
    list_display = ("name_display", "status", "events_per_minute", "retention_days", "created_at")
    search_fields = ("name",)
    search_help_text = "Search by the beginning of a name or by an exact id."
    ordering = ("name",)
    fields = (
        "name",
        "is_active",
        "events_per_minute",
        "retention_days",
        "keep_exchanges",
        "id",
        "created_at",
        "related",
    )
    readonly_fields = ("id", "created_at", "related")

    @admin.display(description="name")
    def name_display(self, row: Organization) -> str:
        return short(row.name)

    @admin.display(description="status")
    def status(self, row: Organization) -> SafeString:
        return badge("active") if row.is_active else badge("disabled", "inactive")

    @admin.display(description="related objects")
    def related(self, row: Organization) -> SafeString | str:
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
