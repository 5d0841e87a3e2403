"""Lists that never count or scan a large table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from django.contrib.admin.views.main import ORDER_VAR, ChangeList
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.text import capfirst

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


def flipped(ordering: Sequence[str]) -> list[str]:
    """Return the opposite order."""
    return [name.removeprefix("-") if name.startswith("-") else f"-{name}" for name in ordering]


class BoundedChangeList(ChangeList):
    """A list in the order of an index, read in the view, where a slow one can be stopped, and not in the template.

    Users can reverse the order, by the heading of the column that the admin's `sortable_by` names; no other order has
    an index.
    """

    search_note = ""
    # How many rows there are, in words.
    found_words = ""
    # The same below the list, with what they are.
    listed_words = ""
    export_links: Sequence[tuple[str, str]] = ()

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if not self.is_popup:  # Django's own title is "Select delivery to view"
            self.title = capfirst(str(self.opts.verbose_name_plural))

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        """Return the order that an index has, reversed if the URL says so."""
        ordering = [str(name) for name in self.model_admin.get_ordering(request)]
        return flipped(ordering) if self._is_turned(ordering) else ordering

    def _is_turned(self, ordering: Sequence[str]) -> bool:
        asked = str(self.params.get(ORDER_VAR, ""))
        return bool(asked) and asked.startswith("-") != ordering[0].startswith("-")

    def get_ordering_field_columns(self) -> dict[int, Literal["desc", "asc"]]:
        """Mark the sorted column."""
        by = [name for name in self.model_admin.sortable_by or () if name in self.list_display]
        if not by:
            return {}
        return {list(self.list_display).index(by[0]): "desc" if self.is_descending else "asc"}

    def get_results(self, request: HttpRequest) -> None:
        """Read the rows of the page now.  An export reads its rows itself, in an order that an index has."""
        if getattr(request, "is_export", False):
            return
        self.is_descending = self.get_ordering(request, self.root_queryset)[0].startswith("-")
        super().get_results(request)
        self.search_note = getattr(request, "search_note", "")
        is_cut = getattr(self.paginator, "is_cut", False)
        self.found_words = f"the first {self.result_count:,}" if is_cut else f"{self.result_count:,} found"
        names = self.opts.verbose_name if self.result_count == 1 else self.opts.verbose_name_plural
        self.listed_words = f"{'the first ' if is_cut else ''}{self.result_count:,} {names}"
        if getattr(self.model_admin, "export_columns", None):
            self.export_links = [
                (name, self.get_query_string({"export": form}, ["p"]))
                for form, name in (("csv", "CSV"), ("ndjson", "NDJSON"))
            ]
        if isinstance(self.result_list, QuerySet):  # all rows fit on one page
            self.result_list = self.paginator.page(1).object_list
