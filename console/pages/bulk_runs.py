"""The admin's pages for bulk runs: replays and recoveries of many deliveries."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django.contrib import admin
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from console.actions import ACTION_BOUND, report
from console.filters import ChoiceFilter, OrganizationFilter
from console.formatting import object_link
from console.model_admin import ReadOnlyAdmin
from console.runs import describe
from core.ids import parse_id
from orgs import audit
from orgs.models import Organization
from webhooks.display.formatting import badge, code_block, format_time, short
from webhooks.models import BulkRun
from webhooks.upkeep import bulk_runs


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


# After how many seconds the page of a running run reloads.
REFRESH_SECONDS = 3


@admin.register(BulkRun)
class BulkRunAdmin(ReadOnlyAdmin):
    """Retries, replays and recoveries of many deliveries, with their progress."""

    list_display = (
        "created_display", "kind", "state_display", "progress_display", "actor_display", "subscription_link",
    )  # fmt: skip
    list_display_links = ("created_display",)
    list_select_related = ("subscription",)
    list_filter = (KindFilter, RunStateFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "Search by a run's exact id."
    ordering = ("-id",)
    fields: ClassVar = (
        "kind", "state_display", "progress_display", "result_display", "actor_display", "subscription_link",
        "organization_link", "filters_display", "before", "cursor_at", "created_at", "updated_at", "finished_at", "id",
    )  # fmt: skip
    actions = ("cancel",)
    object_actions = ("cancel",)
    dangerous_actions = ("cancel",)

    def fits(self, action: str, row: BulkRun) -> bool:
        """Offer to cancel only runs that are running."""
        return row.state == BulkRun.State.RUNNING

    @admin.display(description="created at")
    def created_display(self, row: BulkRun) -> str:
        return format_time(row.created_at)

    @admin.display(description="begun by")
    def actor_display(self, row: BulkRun) -> str:
        return short(row.actor, 60) or "-"

    @admin.display(description="status")
    def state_display(self, row: BulkRun) -> SafeString:
        return badge(row.state)

    @admin.display(description="progress")
    def progress_display(self, row: BulkRun) -> SafeString | str:
        what = "events" if row.kind == BulkRun.Kind.RECOVER else "deliveries"
        if row.state == BulkRun.State.DONE or row.total is None:
            return f"{row.visited:,} {what} seen"
        # More may match by now than were counted when it began.
        total = max(row.total, row.visited)
        return format_html(
            '<progress class="run" max="{}" value="{}"></progress> <span class="nowrap">{} of {} {} seen</span>',
            total or 1, row.visited, f"{row.visited:,}", f"{total:,}", what,
        )  # fmt: skip

    @admin.display(description="result")
    def result_display(self, row: BulkRun) -> str:
        said = describe(row)
        if row.state == BulkRun.State.CANCELLED:
            return f"Cancelled before the end. {said}"
        if row.state == BulkRun.State.RUNNING and not row.in_background:
            return f"{said} The command that began it goes on with it; if it was interrupted, continue or cancel it."
        return said

    @admin.display(description="subscription")
    def subscription_link(self, row: BulkRun) -> SafeString | str:
        return object_link(row.subscription, short(row.subscription.url, 60)) if row.subscription else "-"

    @admin.display(description="organization")
    def organization_link(self, row: BulkRun) -> SafeString | str:
        return object_link(Organization.objects.filter(pk=row.organization_id).first() if row.organization_id else None)

    @admin.display(description="filters")
    def filters_display(self, row: BulkRun) -> SafeString:
        shown = {
            name: f"{len(value)} chosen one by one" if name in {"deliveries", "events"} else value
            for name, value in row.filters.items()
        }
        return code_block(json.dumps(shown, ensure_ascii=False))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the run; while it is running, the page reloads by itself."""
        response = super().change_view(request, object_id, form_url, extra_context)
        row_id = parse_id(object_id)
        if request.method == "GET" and row_id is not None and response.status_code == 200:
            running = BulkRun.objects.filter(pk=row_id, state=BulkRun.State.RUNNING, in_background=True)
            if running.exists():
                response["Refresh"] = str(REFRESH_SECONDS)
        return response

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Whether the user may cancel runs, for `permissions=["cancel"]`: whoever may begin any kind of run."""
        return request.user.has_perms(["webhooks.manage_delivery", "webhooks.switch_subscription"])

    @admin.action(description="Cancel", permissions=["cancel"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[BulkRun]) -> None:
        """Stop the selected runs; what they have done isn't undone."""
        changed, runs = 0, list(queryset[:ACTION_BOUND])
        for run in runs:
            with transaction.atomic():
                if bulk_runs.cancel(run.pk):
                    changed += 1
                    audit.record_for_user(
                        request, "run.cancel", run.organization_id, run.pk, {"kind": run.kind, "queued": run.queued},
                        name=f"{run.kind} of {run.created_at:%Y-%m-%d %H:%M:%S}",
                    )  # fmt: skip
        report(self, request, "cancelled", changed, {"not running": len(runs) - changed})
