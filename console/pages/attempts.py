"""The admin's pages for delivery attempts."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.safestring import SafeString

from console.exchange import curl_body, exchange_block
from console.filters import DeliveryFilter
from console.formatting import code_block, object_link, short
from console.lists import LIST_BOUND, BoundedPaginator
from console.model_admin import ReadOnlyAdmin
from core.ids import parse_id
from webhooks.models import DeliveryAttempt

# By delivery, which is by the time of the event.
NEWEST_FIRST = ("-delivery_id", "-number")


class OutcomeFilter(admin.SimpleListFilter):
    """Failed attempts of the newest deliveries.  There is no index by outcome, so older ones aren't looked at."""

    title = "outcome"
    parameter_name = "outcome"
    _newest = 100_000

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("failed", f"failed (of the newest {self._newest:,})")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() is None:
            return queryset
        newest = DeliveryAttempt.objects.order_by(*NEWEST_FIRST).values_list("delivery_id", flat=True)
        for oldest in newest[self._newest : self._newest + 1]:
            queryset = queryset.filter(delivery_id__gt=oldest)
        return queryset.exclude(error="")


class AttemptPaginator(BoundedPaginator):
    """Attempts are found by their delivery and number: that is their primary key in the database."""

    @property
    def _has_attempts(self) -> bool:
        """Whether these are attempts and not the history of one."""
        rows: Any = self.object_list
        return rows.model is DeliveryAttempt

    @cached_property
    def keys(self) -> dict[Any, tuple[Any, int]]:
        """Return the delivery and the number of each of the ids."""
        rows: Any = self.object_list
        return {row[0]: row[1:] for row in rows.values_list("pk", "delivery_id", "number")[:LIST_BOUND]}

    @cached_property
    def ids(self) -> list[Any]:
        return list(self.keys) if self._has_attempts else super().ids

    def find(self, rows: Any, chosen: list[Any]) -> Any:
        if not self._has_attempts:
            return super().find(rows, chosen)
        keys = [self.keys[pk] for pk in chosen]
        return rows.filter(delivery_id__in={key[0] for key in keys}, number__in={key[1] for key in keys})


@admin.register(DeliveryAttempt)
class DeliveryAttemptAdmin(ReadOnlyAdmin):
    """One attempt: when it was made, how long it took, and what came back."""

    class Media:
        """Scripts of the page."""

        js = ("console/copy.js",)

    list_display = (
        "number_display", "delivery_link", "started_at", "duration", "cause", "status_code", "error", "detail_display",
    )  # fmt: skip
    list_select_related = ("delivery",)
    list_filter = (OutcomeFilter, DeliveryFilter)
    search_fields = ("id",)
    search_help_text = "Search by the exact id of an attempt or a delivery."
    ordering = NEWEST_FIRST
    paginator = AttemptPaginator
    fields: ClassVar = (
        "number", "delivery_link", "event_link", "subscription_link", "started_at", "duration", "cause", "status_code",
        "error", "detail_full", "exchange_display", "response_display", "id",
    )  # fmt: skip

    def audit_target(self, row: DeliveryAttempt) -> str:
        """Return the delivery's id: nobody does anything to an attempt alone."""
        return str(row.delivery_id)

    @admin.display(description="attempt")
    def number_display(self, row: DeliveryAttempt) -> str:
        return f"#{row.number}"

    @admin.display(description="delivery")
    def delivery_link(self, row: DeliveryAttempt) -> SafeString | str:
        return object_link(row.delivery, str(row.delivery_id))

    @admin.display(description="event")
    def event_link(self, row: DeliveryAttempt) -> SafeString | str:
        return object_link(row.delivery.event)

    @admin.display(description="subscription")
    def subscription_link(self, row: DeliveryAttempt) -> SafeString | str:
        return object_link(row.delivery.subscription)

    @admin.display(description="duration")
    def duration(self, row: DeliveryAttempt) -> str:
        return f"{row.duration_ms:.1f} ms"

    @admin.display(description="detail")
    def detail_display(self, row: DeliveryAttempt) -> str:
        return short(row.error_detail, 80)

    @admin.display(description="detail")
    def detail_full(self, row: DeliveryAttempt) -> str:
        return short(row.error_detail, 600) or "-"

    @admin.display(description="exchange")
    def exchange_display(self, row: DeliveryAttempt) -> SafeString:
        return curl_body(row.delivery) + exchange_block(row)

    @admin.display(description="response body")
    def response_display(self, row: DeliveryAttempt) -> SafeString:
        return code_block(row.response_body)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by an attempt's or a delivery's id."""
        delivery_id = parse_id(term)
        if delivery_id:
            return queryset.filter(delivery_id=delivery_id)
        if term.isascii() and term.isdigit() and len(term) <= 18:
            return queryset.filter(pk=int(term))
        return queryset.none()
