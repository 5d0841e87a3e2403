"""An event's page with its deliveries: they stand above events, so this is added here."""

from __future__ import annotations

from typing import ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from core.admin_tools.actions import TooMany, refuse_too_many, report, selected_ids
from core.admin_tools.text import list_link
from events.admin import EventAdmin
from events.models import Event
from webhooks.admin.repairs import USE_COMMAND, repair_deliveries
from webhooks.admin.shown import delivery_table
from webhooks.models import Delivery
from webhooks.repair import Repair

SHOWN_DELIVERIES = 100


# Events stand below deliveries, so what their page shows and does with these is added here.
admin.site.unregister(Event)


@admin.register(Event)
class EventWithDeliveriesAdmin(EventAdmin):
    """An event, its deliveries, and sending them again."""

    fields: ClassVar[tuple[str, ...]] = (*EventAdmin.fields[:-1], "deliveries_shown", EventAdmin.fields[-1])
    actions = ("reprocess", "replay")
    object_actions = ("reprocess", "replay")

    @admin.display(description="deliveries")
    def deliveries_shown(self, row: Event) -> SafeString:
        """Return the event's deliveries with their states."""
        found = list(
            Delivery.objects.filter(event_id=row.pk)
            .select_related("subscription").defer("subscription__encrypted_headers")
            .order_by("created_at", "id")[:SHOWN_DELIVERIES]
        )  # fmt: skip
        shown = delivery_table(found)
        if len(found) == SHOWN_DELIVERIES:
            shown += list_link("webhooks_delivery", "all deliveries", event=row.pk)
        return shown

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Tell whether the member of staff may send deliveries again."""
        return request.user.has_perm("webhooks.repair_delivery")

    @admin.action(description="Replay all deliveries", permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Event]) -> None:
        """Send every settled delivery of the chosen events again."""
        try:
            deliveries = selected_ids(Delivery.objects.filter(event_id__in=selected_ids(queryset)).order_by("id"))
        except TooMany:
            refuse_too_many(self, request, USE_COMMAND)
            return
        changed, left = repair_deliveries(request, Repair.REPLAY, deliveries)
        report(self, request, "deliveries to be sent again", changed, left)
