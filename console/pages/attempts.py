"""The admin's pages for delivery attempts."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Max, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from console.formatting import code_block, object_link, short
from console.pages.row_filters import DeliveryFilter
from console.tenant_admin import TenantReadOnlyAdmin
from core.ids import parse_id
from webhooks.models import DeliveryAttempt


class OutcomeFilter(admin.SimpleListFilter):
    """Failed attempts among the newest: attempts have no index by outcome, so no more are looked at."""

    title = "outcome"
    parameter_name = "outcome"
    _newest = 100_000

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the choice."""
        return [("failed", f"failed, of the newest {self._newest:,}")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the newest that failed."""
        if self.value() is None:
            return queryset
        newest = DeliveryAttempt.objects.aggregate(newest=Max("id"))["newest"] or 0
        return queryset.filter(id__gt=newest - self._newest).exclude(error="")


@admin.register(DeliveryAttempt)
class DeliveryAttemptAdmin(TenantReadOnlyAdmin):
    """One try: when, how long, and what came back."""

    list_display = (
        "number_shown", "delivery_link", "started_at", "took", "cause", "status_code", "error", "detail_shown",
    )  # fmt: skip
    list_select_related = ("delivery",)
    list_filter = (OutcomeFilter, DeliveryFilter)
    search_fields = ("id",)
    search_help_text = "Exact: the id of an attempt or of a delivery."
    ordering = ("-id",)
    fields: ClassVar = (
        "number", "delivery_link", "event_link", "subscription_link", "started_at", "took", "cause", "status_code",
        "error", "detail_full", "response_shown", "id",
    )  # fmt: skip

    @admin.display(description="attempt")
    def number_shown(self, row: DeliveryAttempt) -> str:
        """Return which try it was."""
        return f"#{row.number}"

    @admin.display(description="delivery")
    def delivery_link(self, row: DeliveryAttempt) -> SafeString | str:
        """Return a link to the delivery."""
        return object_link(row.delivery, str(row.delivery_id))

    @admin.display(description="event")
    def event_link(self, row: DeliveryAttempt) -> SafeString | str:
        """Return a link to the event."""
        return object_link(row.delivery.event)

    @admin.display(description="subscription")
    def subscription_link(self, row: DeliveryAttempt) -> SafeString | str:
        """Return a link to the subscription."""
        return object_link(row.delivery.subscription)

    @admin.display(description="took")
    def took(self, row: DeliveryAttempt) -> str:
        """Return how long it took."""
        return f"{row.duration_ms:.1f} ms"

    @admin.display(description="detail")
    def detail_shown(self, row: DeliveryAttempt) -> str:
        """Return the beginning of the explanation."""
        return short(row.error_detail, 80)

    @admin.display(description="detail")
    def detail_full(self, row: DeliveryAttempt) -> str:
        """Return the explanation."""
        return short(row.error_detail, 600) or "-"

    @admin.display(description="response body (its beginning)")
    def response_shown(self, row: DeliveryAttempt) -> SafeString:
        """Return what the receiver said, escaped."""
        return code_block(row.response_body)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by an attempt's number in the table, or a delivery's id."""
        delivery_id = parse_id(term)
        if delivery_id:
            return queryset.filter(delivery_id=delivery_id)
        if term.isascii() and term.isdigit() and len(term) <= 18:
            return queryset.filter(pk=int(term))
        return queryset.none()
