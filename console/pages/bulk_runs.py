"""The admin's pages for replays and recoveries of many deliveries."""

from __future__ import annotations

import json
from typing import ClassVar

from django.contrib import admin
from django.utils.safestring import SafeString

from console.filters import ChoiceFilter
from console.formatting import badge, code_block, object_link
from console.tenant_admin import OrganizationFilter, TenantReadOnlyAdmin
from webhooks.models import BulkRun


class KindFilter(ChoiceFilter):
    """Replays or recoveries."""

    title = "kind"
    parameter_name = "kind"
    column = "kind"
    words = BulkRun.Kind.values


class RunStateFilter(ChoiceFilter):
    """Running or done."""

    title = "state"
    parameter_name = "state"
    column = "state"
    words = BulkRun.State.values


@admin.register(BulkRun)
class BulkRunAdmin(TenantReadOnlyAdmin):
    """Replays and recoveries of many deliveries, and how far they are."""

    list_display = ("id_shown", "kind", "state_shown", "queued", "subscription_link", "created_at", "finished_at")
    list_select_related = ("subscription",)
    list_filter = (KindFilter, RunStateFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "A run's id."
    ordering = ("-id",)
    fields: ClassVar = (
        "id", "kind", "state_shown", "queued", "subscription_link", "organization_id", "filters_shown", "before",
        "cursor_at", "created_at", "finished_at",
    )  # fmt: skip

    @admin.display(description="run")
    def id_shown(self, row: BulkRun) -> str:
        """Return the id."""
        return str(row.id)

    @admin.display(description="state")
    def state_shown(self, row: BulkRun) -> SafeString:
        """Return the state in its color."""
        return badge(row.state)

    @admin.display(description="subscription")
    def subscription_link(self, row: BulkRun) -> SafeString | str:
        """Return a link to the subscription of a recovery."""
        return object_link(row.subscription)

    @admin.display(description="filters")
    def filters_shown(self, row: BulkRun) -> SafeString:
        """Return what the run takes."""
        return code_block(json.dumps(row.filters, ensure_ascii=False))
