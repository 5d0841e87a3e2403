"""Lists that never count or scan a big table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

# A list shows this many rows at the most; who wants older ones narrows it with a filter.
LIST_BOUND = 1000


if TYPE_CHECKING:
    _Paginator = Paginator[Any]
else:  # the class takes no parameters when the program runs
    _Paginator = Paginator


class BoundedPaginator(_Paginator):
    """Pages of the first LIST_BOUND rows.  Nothing is counted further than that."""

    @cached_property
    def ids(self) -> list[Any]:
        """Return the ids of the first LIST_BOUND rows, in their order: it lets an index stop early."""
        rows: Any = self.object_list
        return list(rows.values_list("pk", flat=True)[:LIST_BOUND])

    @cached_property
    def count(self) -> int:
        """Return how many rows there are, at most LIST_BOUND."""
        return len(self.ids)

    def page(self, number: int | str) -> Any:
        """Return a page: its rows alone are read whole and joined with others."""
        number = self.validate_number(number)
        chosen = self.ids[(number - 1) * self.per_page : number * self.per_page]
        rows: Any = self.object_list
        found = {row.pk: row for row in rows.order_by().filter(pk__in=chosen)}
        return Page([found[pk] for pk in chosen if pk in found], number, self)

    @property
    def is_cut(self) -> bool:
        """Tell whether there may be more rows than are shown."""
        return self.count >= LIST_BOUND


class BoundedChangeList(ChangeList):
    """A list that is read within the request, so that a slow one can be stopped, in a fixed order."""

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        """Return the order that an index has; the reader can't choose one that none has."""
        return list(self.model_admin.get_ordering(request))

    def get_ordering_field_columns(self) -> dict[int, Literal["desc", "asc"]]:
        """Show no column as the sorted one."""
        return {}

    def get_results(self, request: HttpRequest) -> None:
        """Read the page's rows now."""
        super().get_results(request)
        if isinstance(self.result_list, QuerySet):  # all of them: they fit on one page
            self.result_list = self.paginator.page(1).object_list
