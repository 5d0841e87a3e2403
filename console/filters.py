"""The filters of the lists.  Each is served by an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from console.time_ranges import SPANS
from core.ids import first_id_since, parse_id
from events.models import Event
from orgs.models import Organization
from webhooks.delivery_filters import is_outcome, of_outcome
from webhooks.display.causes import words_for
from webhooks.display.formatting import short
from webhooks.models import Delivery, Subscription

# The filter offers this many organizations by name; links lead to the others.
OFFERED_ORGANIZATIONS = 15


class ExactFilter(admin.SimpleListFilter):
    """A filter by another row's id, which links and searches set; shown only while it is set."""

    template = "console/exact_filter.html"
    model: ClassVar[type[Model]]
    column: ClassVar[str]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        value = self.value()
        if value is None:
            return []
        row_id = parse_id(value)
        row = type(self).model._default_manager.filter(pk=row_id).first() if row_id else None
        return [(value, short(str(row)) if row else "(not found)")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        row_id = parse_id(value)
        return queryset.filter(**{self.column: row_id}) if row_id else queryset.none()


class EventFilter(ExactFilter):
    """Rows of one event."""

    title = "event"
    parameter_name = "event"
    column = "event_id"
    model = Event


class SubscriptionFilter(ExactFilter):
    """Rows of one subscription."""

    title = "subscription"
    parameter_name = "subscription"
    column = "subscription_id"
    model = Subscription


class DeliveryFilter(ExactFilter):
    """Rows of one delivery."""

    title = "delivery"
    parameter_name = "delivery"
    column = "delivery_id"
    model = Delivery


class OutcomeOfLastFilter(admin.SimpleListFilter):
    """Deliveries whose last attempt failed for one cause.  The home links to it; shown only while it is set."""

    title = "cause"
    parameter_name = "outcome"
    template = "console/exact_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        value = self.value()
        if not value:
            return []
        return [(value, words_for(value) if is_outcome(value) else "(not found)")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        return queryset.filter(of_outcome(value)) if is_outcome(value) else queryset.none()


class OrganizationFilter(admin.SimpleListFilter):
    """Rows of one organization."""

    title = "organization"
    parameter_name = "organization"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Offer the first organizations by name, and the chosen one."""
        offered = list(Organization.objects.order_by("name")[:OFFERED_ORGANIZATIONS])
        chosen = parse_id(self.value() or "")
        if chosen and all(row.pk != chosen for row in offered):
            offered += Organization.objects.filter(pk=chosen)
        return [(str(row.pk), short(row.name, 40)) for row in offered]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        organization_id = parse_id(value)
        return queryset.filter(organization_id=organization_id) if organization_id else queryset.none()


class SpanFilter(admin.SimpleListFilter):
    """Rows created in the last minutes, hours or days, found by the time in their ids."""

    title = "creation time"
    parameter_name = "created"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, label) for name, (label, _) in SPANS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        if value not in SPANS:
            return queryset.none()
        since = timezone.now() - SPANS[value][1]
        return queryset.filter(created_at__gte=since, id__gte=first_id_since(since))


class ChoiceFilter(admin.SimpleListFilter):
    """A filter by the values that a column may have."""

    values: ClassVar[Sequence[str]]
    column: ClassVar[str]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in self.values]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        return queryset.filter(**{self.column: value}) if value in self.values else queryset.none()
