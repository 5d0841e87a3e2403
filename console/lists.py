"""Lists that never count or scan a large table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

from core.query import newest

# A list shows at most this many rows; a filter or a search leads to the others.
LIST_BOUND = 1000
BY_TIME = ("-created_at", "-id")


if TYPE_CHECKING:
    _Paginator = Paginator[Any]
else:  # the class takes no parameters when the program runs
    _Paginator = Paginator


class BoundedPaginator(_Paginator):
    """Pages of the first LIST_BOUND rows; the rest is not even counted."""

    @cached_property
    def ids(self) -> list[Any]:
        """Return the ids of the first LIST_BOUND rows in order, which lets an index scan stop early."""
        rows: Any = self.object_list
        order = rows.query.order_by
        if order != BY_TIME:
            return list(rows.values_list("pk", flat=True)[:LIST_BOUND])
        return [row[0] for row in newest(rows.values_list("id", "created_at"), LIST_BOUND, order)]

    def find(self, rows: Any, chosen: list[Any]) -> Any:
        """Return the rows with these ids, and perhaps others, by an index."""
        return rows.filter(pk__in=chosen)

    @cached_property
    def count(self) -> int:
        """Return how many rows there are, at most LIST_BOUND."""
        return len(self.ids)

    def page(self, number: int | str) -> Any:
        """Return a page.  Only its own rows are read whole and joined with related ones."""
        number = self.validate_number(number)
        chosen = self.ids[(number - 1) * self.per_page : number * self.per_page]
        rows: Any = self.object_list
        found = {row.pk: row for row in self.find(rows.order_by(), chosen)}
        return Page([found[pk] for pk in chosen if pk in found], number, self)

    @property
    def is_cut(self) -> bool:
        """Whether there may be more rows than are listed."""
        return self.count >= LIST_BOUND


class BoundedChangeList(ChangeList):
    """A list in a fixed order that is read in the view, where a slow one can be stopped, and not in the template."""

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        """Return the order that an index has; people can't choose another one."""
        return list(self.model_admin.get_ordering(request))

    def get_ordering_field_columns(self) -> dict[int, Literal["desc", "asc"]]:
        """Mark no column as the sorted one."""
        return {}

    def get_results(self, request: HttpRequest) -> None:
        """Read the rows of the page now."""
        super().get_results(request)
        if isinstance(self.result_list, QuerySet):  # all rows fit on one page
            self.result_list = self.paginator.page(1).object_list
