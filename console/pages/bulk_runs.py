"""The admin's pages for bulk runs: replays and recoveries of many deliveries."""

from __future__ import annotations

import json
from typing import ClassVar

from django.contrib import admin
from django.utils.safestring import SafeString

from console.filters import ChoiceFilter, OrganizationFilter
from console.formatting import badge, code_block, object_link
from console.model_admin import ReadOnlyAdmin
from webhooks.models import BulkRun


class KindFilter(ChoiceFilter):
    """Runs of one kind."""

    title = "kind"
    parameter_name = "kind"
    column = "kind"
    values = BulkRun.Kind.values


class RunStateFilter(ChoiceFilter):
    """Runs in one state."""

    title = "status"
    parameter_name = "state"
    column = "state"
    values = BulkRun.State.values


@admin.register(BulkRun)
class BulkRunAdmin(ReadOnlyAdmin):
    """Replays and recoveries of many deliveries, with their progress."""

    list_display = ("id_display", "kind", "state_display", "queued", "subscription_link", "created_at", "finished_at")
    list_select_related = ("subscription",)
    list_filter = (KindFilter, RunStateFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "Search by a run's exact id."
    ordering = ("-id",)
    fields: ClassVar = (
        "id", "kind", "state_display", "queued", "subscription_link", "organization_id", "filters_display", "before",
        "cursor_at", "created_at", "finished_at",
    )  # fmt: skip

    @admin.display(description="run")
    def id_display(self, row: BulkRun) -> str:
        return str(row.id)

    @admin.display(description="status")
    def state_display(self, row: BulkRun) -> SafeString:
        return badge(row.state)

    @admin.display(description="subscription")
    def subscription_link(self, row: BulkRun) -> SafeString | str:
        return object_link(row.subscription)

    @admin.display(description="filters")
    def filters_display(self, row: BulkRun) -> SafeString:
        return code_block(json.dumps(row.filters, ensure_ascii=False))
