"""The admin's pages for the audit log."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from console.filters import OrganizationFilter, SpanFilter
from console.lists import LIST_BOUND
from console.model_admin import ReadOnlyAdmin
from core.ids import parse_id
from orgs.models import AuditEntry
from webhooks.display.formatting import code_block, format_time, short

_RECENT_ENTRIES = 50_000
# SQL, because the ORM can't filter what a LIMIT has cut off.  The newest entries, read by their index; among these,
# what the term names.  An OR over the table would read all of it.
_FIND_RECENT = """
SELECT id FROM (
    SELECT id, actor, action, target, target_name FROM orgs_auditentry
    ORDER BY created_at DESC, id DESC LIMIT %(entries)s
) AS recent WHERE %(term)s::text IN (actor, action, target, target_name) LIMIT %(most)s
"""


# What the first word of an action is about: the admin's page of its target.  Apps above the console add theirs.
PAGES = {
    "subscription": "webhooks_subscription",
    "delivery": "webhooks_delivery",
    "key": "orgs_apikey",
    "organization": "orgs_organization",
    "event": "events_event",
    "run": "webhooks_bulkrun",
}


def _page_of(row: AuditEntry) -> str | None:
    """Return the address of the admin's page of what the entry is about."""
    model = PAGES.get(row.action.partition(".")[0])
    if "run" in row.detail:
        model, target = "webhooks_bulkrun", str(row.detail["run"])
    else:
        target = row.target
    if model is None or parse_id(target) is None:
        return None
    return reverse(f"admin:{model}_change", args=[target])


class TargetFilter(admin.SimpleListFilter):
    """Entries about one object.  Its History button links to it; shown only while it is set."""

    title = "what it was done to"
    parameter_name = "target"
    template = "console/exact_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        value = self.value()
        if not value:
            return []
        named = AuditEntry.objects.filter(target=value[:200]).exclude(target_name="").order_by("-created_at", "-id")
        name = named.values_list("target_name", flat=True).first()
        return [(value, short(name or value, 60))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        if "\x00" in value or len(value) > 200:
            return queryset.none()
        # Each half by its own index.
        of_one = AuditEntry.objects.filter(target=value).order_by("-created_at", "-id").values("pk")[:LIST_BOUND]
        of_many = AuditEntry.objects.filter(targets__contains=[value[:40]]).values("pk")[:LIST_BOUND]
        return queryset.filter(pk__in=[row["pk"] for rows in (of_one, of_many) for row in rows])


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    """Who did what."""

    list_display = (
        "created_display", "organization_link", "actor_display", "action", "what_display", "reason_display",
    )  # fmt: skip
    list_display_links = ("created_display",)
    list_select_related = ("organization",)
    list_filter = (OrganizationFilter, SpanFilter, TargetFilter)
    search_fields = ("id",)
    search_help_text = (
        "Search by an entry's exact id or, among the newest "
        f"{_RECENT_ENTRIES:,}, by an exact actor (user:…, key:…), action, target, or name."
    )
    ordering = ("-created_at", "-id")
    fields = (
        "created_at", "actor_display", "action", "what_display", "reason_display", "organization_link",
        "detail_display", "target_display", "address", "request_id", "id",
    )  # fmt: skip

    @admin.display(description="created at")
    def created_display(self, row: AuditEntry) -> str:
        return format_time(row.created_at)

    @admin.display(description="actor")
    def actor_display(self, row: AuditEntry) -> str:
        return short(row.actor, 200)

    @admin.display(description="what it was done to")
    def what_display(self, row: AuditEntry) -> SafeString | str:
        label = short(row.target_name or row.target, 100) or "-"
        url = _page_of(row)
        return format_html('<a href="{}">{}</a>', url, label) if url else label

    @admin.display(description="reason")
    def reason_display(self, row: AuditEntry) -> str:
        return short(row.reason, 200) or "-"

    @admin.display(description="target")
    def target_display(self, row: AuditEntry) -> str:
        return short(row.target, 200)

    @admin.display(description="detail")
    def detail_display(self, row: AuditEntry) -> SafeString:
        return code_block(json.dumps(row.detail, ensure_ascii=False) if row.detail else "")

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id or, among the newest entries, by exact actor, action or target."""
        row_id = parse_id(term)
        if row_id and AuditEntry.objects.filter(pk=row_id).exists():
            return queryset.filter(pk=row_id)
        with connection.cursor() as cursor:
            cursor.execute(_FIND_RECENT, {"entries": _RECENT_ENTRIES, "term": term, "most": LIST_BOUND})
            return queryset.filter(pk__in=[found for (found,) in cursor.fetchall()])
