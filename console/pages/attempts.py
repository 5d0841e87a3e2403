"""The admin's pages for delivery attempts."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.safestring import SafeString

from console import search
from console.filters import DeliveryFilter
from console.formatting import object_link
from console.lists import LIST_BOUND, BoundedChangeList, BoundedPaginator, flipped
from console.model_admin import ReadOnlyAdmin
from core.ids import parse_id
from webhooks.display.exchange import exchange_blocks
from webhooks.display.formatting import format_duration, format_time, host_of_url, outcome_badge, short
from webhooks.models import ENCRYPTED, DeliveryAttempt

NEWEST_FIRST = ("-started_at", "-id")
# The primary key, which is by the time of the event: the only order that any number of attempts can be read in.
BY_DELIVERY = ("-delivery_id", "-number")
# Ids are given out when attempts are recorded, so the newest attempts have the last ids, whichever partition they
# are in, and an index leads to them.  The rows with this many of the last ids are read and sorted; if too
# few of them match, with the next number.
_WINDOWS = (1_500, 12_000, 100_000)


def last_id() -> int:
    """Return the id that was given out last; 0 if there was none."""
    with connection.cursor() as cursor:  # SQL, because the ORM doesn't read sequences
        cursor.execute("SELECT pg_sequence_last_value(pg_get_serial_sequence('webhooks_deliveryattempt', 'id'))")
        ((last,),) = cursor.fetchall()
    return last or 0


class OutcomeFilter(admin.SimpleListFilter):
    """Failed attempts among the newest ones.  No index has the outcome, so older ones aren't searched."""

    title = "outcome"
    parameter_name = "outcome"
    newest = 100_000

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("failed", f"failed (of the newest {self.newest:,})")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() is None:
            return queryset
        return queryset.filter(id__gt=last_id() - self.newest).exclude(error="")


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
        return {
            pk: (delivery_id, number)
            for pk, delivery_id, number in rows.values_list("pk", "delivery_id", "number")[:LIST_BOUND]
        }

    @cached_property
    def ids(self) -> list[Any]:
        return list(self.keys) if self._has_attempts else super().ids

    def find(self, rows: Any, chosen: list[Any]) -> Any:
        if not self._has_attempts:
            return super().find(rows, chosen)
        keys = [self.keys[pk] for pk in chosen]
        return rows.filter(delivery_id__in={key[0] for key in keys}, number__in={key[1] for key in keys})


class AttemptChangeList(BoundedChangeList):
    """Attempts by the time at which they were made, which no index has: sorted among those with the last ids."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        """Return the list's rows, or those among which its first ones are."""
        rows: QuerySet[Any] = super().get_queryset(request, exclude_parameters)
        # The attempts of a few deliveries can be sorted without a bound.
        if getattr(request, "is_export", False) or self.query or DeliveryFilter.parameter_name in request.GET:
            return rows
        ordering = self.get_ordering(request, self.root_queryset)
        last, is_descending = last_id(), str(ordering[0]).startswith("-")
        first = max(0, last - OutcomeFilter.newest) if OutcomeFilter.parameter_name in request.GET else _first_id()
        for size in _WINDOWS:
            among = rows.filter(id__gt=last - size) if is_descending else rows.filter(id__lt=first + size)
            if last - first < size or len(among.values_list("pk", flat=True)[:LIST_BOUND]) == LIST_BOUND:
                return among
        if OutcomeFilter.parameter_name in request.GET:
            return among
        return rows.order_by(*(BY_DELIVERY if is_descending else flipped(BY_DELIVERY)))


def _first_id() -> int:
    """Return the least of the ids of the oldest deliveries' attempts."""
    oldest = DeliveryAttempt.objects.order_by(*flipped(BY_DELIVERY)).values_list("pk", flat=True)[:LIST_BOUND]
    return min(oldest, default=0)


@admin.register(DeliveryAttempt)
class DeliveryAttemptAdmin(ReadOnlyAdmin):
    """One attempt: when it was made, how long it took, and what came back."""

    audit_noun = "attempt"
    list_display = (
        "time_display", "organization_display", "type_display", "endpoint_display", "outcome_display", "number_display",
        "duration", "detail_display", "delivery_link",
    )  # fmt: skip
    list_select_related = ("delivery__event", "delivery__subscription", "delivery__organization")
    sortable_by: ClassVar = ("time_display",)
    export_columns: ClassVar = {
        "delivery_id": "delivery_id", "number": "number", "started_at": "started_at", "duration_ms": "duration_ms",
        "cause": "cause", "status_code": "status_code", "error": "error", "error_detail": "error_detail",
        "url": "delivery__subscription__url", "event_type": "delivery__event__type",
    }  # fmt: skip
    list_filter = (OutcomeFilter, DeliveryFilter)
    search_fields = ("id",)
    search_help_text = (
        "The id of a delivery, an event type, part of an endpoint's URL or of an organization's name. The newest first."
    )
    paginator = AttemptPaginator
    fields: ClassVar = (
        "number", "delivery_link", "event_link", "subscription_link", "started_at", "duration", "trigger_display",
        "outcome_display", "status_code", "error", "detail_full", "exchange_display", "id",
    )  # fmt: skip

    def audit_target(self, row: DeliveryAttempt) -> str:
        """Return the delivery's id: nothing is done to an attempt alone."""
        return str(row.delivery_id)

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeliveryAttempt]:
        """Return attempts without what the list doesn't show."""
        return super().get_queryset(request).defer(
            "delivery__event__data", *(f"delivery__subscription__{name}" for name in ENCRYPTED)
        ).select_related(*self.list_select_related)  # fmt: skip

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return AttemptChangeList

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """By time; an export, which reads all of them, by delivery."""
        return BY_DELIVERY if getattr(request, "is_export", False) else NEWEST_FIRST

    @admin.display(description="time", ordering="started_at")
    def time_display(self, row: DeliveryAttempt) -> str:
        return format_time(row.started_at)

    @admin.display(description="organization")
    def organization_display(self, row: DeliveryAttempt) -> SafeString | str:
        return object_link(row.delivery.organization)

    @admin.display(description="type")
    def type_display(self, row: DeliveryAttempt) -> str:
        return short(row.delivery.event.type, 60)

    @admin.display(description="endpoint")
    def endpoint_display(self, row: DeliveryAttempt) -> SafeString | str:
        subscription = row.delivery.subscription
        return object_link(subscription, short(host_of_url(subscription.url), 60))

    @admin.display(description="outcome")
    def outcome_display(self, row: DeliveryAttempt) -> SafeString:
        return outcome_badge(row)

    @admin.display(description="attempt")
    def number_display(self, row: DeliveryAttempt) -> str:
        return f"#{row.number}"

    @admin.display(description="delivery")
    def delivery_link(self, row: DeliveryAttempt) -> SafeString | str:
        return object_link(row.delivery, f"…{str(row.delivery_id)[-8:]}")

    @admin.display(description="event")
    def event_link(self, row: DeliveryAttempt) -> SafeString | str:
        return object_link(row.delivery.event)

    @admin.display(description="subscription")
    def subscription_link(self, row: DeliveryAttempt) -> SafeString | str:
        return object_link(row.delivery.subscription)

    @admin.display(description="duration")
    def duration(self, row: DeliveryAttempt) -> str:
        return format_duration(row.duration_ms)

    @admin.display(description="triggered by")
    def trigger_display(self, row: DeliveryAttempt) -> str:
        return row.cause

    @admin.display(description="detail")
    def detail_display(self, row: DeliveryAttempt) -> str:
        return short(row.error_detail, 80)

    @admin.display(description="detail")
    def detail_full(self, row: DeliveryAttempt) -> str:
        return short(row.error_detail, 600) or "-"

    @admin.display(description="exchange")
    def exchange_display(self, row: DeliveryAttempt) -> SafeString:
        return exchange_blocks(row.delivery, [row])[0]

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by an attempt's or a delivery's id, or as deliveries are found."""
        delivery_id = parse_id(term)
        if delivery_id:
            return queryset.filter(delivery_id=delivery_id)
        if term.isascii() and term.isdigit() and len(term) <= 18:
            return queryset.filter(pk=int(term))
        found = search.find_deliveries(term, search.Scope.of(request))
        request.search_note = found.note  # type: ignore[attr-defined]
        return search.with_ids(queryset, found.ids, "delivery_id")
