"""A list's filters, each served by an index."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from console.formatting import short
from core.ids import parse_id


class ExactFilter(admin.SimpleListFilter):
    """A filter by another row's id, set by a link or a search; shown only while it is set."""

    template = "admin/set_filter.html"
    model: ClassVar[type[Model]]
    column: ClassVar[str]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the one value that is set."""
        value = self.value()
        if value is None:
            return []
        row_id = parse_id(value)
        row = type(self).model._default_manager.filter(pk=row_id).first() if row_id else None
        return [(value, short(str(row)) if row else "nothing that exists")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of the given one."""
        value = self.value()
        if value is None:
            return queryset
        row_id = parse_id(value)
        return queryset.filter(**{self.column: row_id}) if row_id else queryset.none()


SPANS = {
    "15m": ("Last 15 minutes", datetime.timedelta(minutes=15)),
    "1h": ("Last hour", datetime.timedelta(hours=1)),
    "1d": ("Last 24 hours", datetime.timedelta(days=1)),
    "7d": ("Last 7 days", datetime.timedelta(days=7)),
}
# An id's time is that of the process which made it; its clock may be wrong by this much.
_CLOCKS_DIFFER = datetime.timedelta(hours=2)


def first_id_since(moment: datetime.datetime) -> uuid.UUID:
    """Return an id that is before every UUIDv7 made since `moment` (RFC 9562 §5.7), clocks allowed for."""
    milliseconds = int((moment - _CLOCKS_DIFFER).timestamp() * 1000)
    return uuid.UUID(int=max(0, milliseconds) << 80)


class SpanFilter(admin.SimpleListFilter):
    """Rows made in the last minutes, hours or days, found through the time in their ids."""

    title = "created"
    parameter_name = "created"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the spans."""
        return [(name, label) for name, (label, _) in SPANS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of the span."""
        value = self.value()
        if value is None:
            return queryset
        if value not in SPANS:
            return queryset.none()
        since = timezone.now() - SPANS[value][1]
        return queryset.filter(created_at__gte=since, id__gte=first_id_since(since))


class ChoiceFilter(admin.SimpleListFilter):
    """A filter by one column's words."""

    words: ClassVar[Sequence[str]]
    column: ClassVar[str]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the words."""
        return [(word, word) for word in self.words]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows with the word."""
        value = self.value()
        if value is None:
            return queryset
        return queryset.filter(**{self.column: value}) if value in self.words else queryset.none()
