"""The admin's pages for the audit log."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from console.filters import OrganizationFilter, SpanFilter
from console.formatting import code_block, short
from console.lists import LIST_BOUND
from console.model_admin import ReadOnlyAdmin
from core.ids import parse_id
from orgs.models import AuditEntry

_RECENT_ENTRIES = 50_000
_FIND_RECENT = """
SELECT id FROM (
    SELECT id, actor, action, target FROM orgs_auditentry ORDER BY created_at DESC, id DESC LIMIT %s
) AS recent WHERE actor = %s OR action = %s OR target = %s LIMIT %s
"""


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    """Who did what."""

    list_display = ("created_at", "actor_display", "action", "target_display", "organization_link", "address")
    list_display_links = ("created_at",)
    list_select_related = ("organization",)
    list_filter = (OrganizationFilter, SpanFilter)
    search_fields = ("id",)
    search_help_text = (
        "Search by an entry's exact id or, among the newest "
        f"{_RECENT_ENTRIES:,}, by an exact actor (user:…, key:…), action, or target."
    )
    ordering = ("-created_at", "-id")
    fields = (
        "created_at", "actor_display", "action", "target_display", "detail_display", "organization_link", "address",
        "request_id", "id",
    )  # fmt: skip

    @admin.display(description="actor")
    def actor_display(self, row: AuditEntry) -> str:
        return short(row.actor, 200)

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
            cursor.execute(_FIND_RECENT, [_RECENT_ENTRIES, term, term, term, LIST_BOUND])
            return queryset.filter(pk__in=[found[0] for found in cursor.fetchall()])
