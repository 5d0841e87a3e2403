"""Lists that never count or scan a big table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
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
    def count(self) -> int:
        """Return how many rows there are, at most LIST_BOUND."""
        rows: Any = self.object_list
        # The order stays: it is what lets an index stop the count early.
        return len(rows.values_list("pk", flat=True)[:LIST_BOUND])

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
        self.result_list = list(self.result_list)
