"""What every admin page of ours stands on: lists that never count or scan a big table, read-only
models, exact searches, hostile text shown as text, and repairs in bounded steps.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db import OperationalError, connection, transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from psycopg.errors import QueryCanceled

from core.ids import parse_id
from core.pretty import excerpt, pretty_json, visible

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:  # these classes take no parameters when the program runs
    _ModelAdmin = admin.ModelAdmin
    _Paginator = Paginator

# A list shows this many rows at the most; who wants older ones narrows it with a filter.
LIST_BOUND = 1000
LIST_TIMEOUT_MS = 5000
# An action on "all matching" takes this many rows at the most.
ACTION_BOUND = 10_000
ACTION_CHUNK = 500
SHOWN_CHARACTERS = 65_536


# --- Text ---------------------------------------------------------------------------------------


def code_block(text: str) -> SafeString:
    """Return hostile text, indented if it is JSON, escaped, in a box of bounded length."""
    if not text:
        return SafeString("-")
    shown, left_out = excerpt(visible(pretty_json(text)), SHOWN_CHARACTERS)
    box = format_html('<pre class="hostile">{}</pre>', shown)
    if left_out:
        box += format_html('<p class="help">{} further characters are not shown.</p>', left_out)
    return box


def short(text: str, most: int = 80) -> str:
    """Return the beginning of hostile text on one line, for a list."""
    line = visible(text).replace("\n", " ").replace("\t", " ")
    return line if len(line) <= most else line[: most - 1] + "…"


def badge(word: str, label: str | None = None) -> SafeString:
    """Return a state as a coloured word.  word: one of our own states, used as a CSS class."""
    return format_html('<span class="state state-{}">{}</span>', word, label or word)


def object_link(row: Model | None, label: str | None = None) -> SafeString | str:
    """Return a link to the row's own page."""
    if row is None:
        return "-"
    url = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}">{}</a>', url, short(label if label is not None else str(row)))


def list_link(model: str, label: str, **filters: object) -> SafeString:
    """Return a link to a model's list with filters.  model: such as `webhooks_delivery`."""
    url = reverse(f"admin:{model}_changelist", query=filters)
    return format_html('<a href="{}">{}</a>', url, label)


def lines(parts: Iterable[str]) -> SafeString:
    """Return texts below each other."""
    return format_html_join("\n", "<div>{}</div>", ((part,) for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> SafeString:
    """Return a small table; cells are escaped unless they are safe already."""
    body = format_html_join(
        "\n", "<tr>{}</tr>", ((format_html_join("", "<td>{}</td>", ((c,) for c in row)),) for row in rows)
    )
    if not body:
        return SafeString("none")
    return format_html(
        '<table class="inner"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>',
        format_html_join("", "<th>{}</th>", ((name,) for name in head)),
        body,
    )


# --- Lists --------------------------------------------------------------------------------------


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


class BoundedAdmin(_ModelAdmin):
    """A model whose list is bounded, whose search is exact, and whose changes are all audited."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    list_per_page = 50
    list_max_show_all = 0
    sortable_by = ()
    actions_on_bottom = False
    change_list_template = "admin/bounded_change_list.html"
    change_form_template = "admin/object_page.html"
    audit_word = ""  # what stands before .create and .change in the audit log
    # Words of actions that the page of one object offers as buttons.
    object_actions: ClassVar[Sequence[str]] = ()

    # --- lists --------------------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the bounded list."""
        return BoundedChangeList

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Allow no filter but those in list_filter: any other could scan the table."""
        return lookup in {getattr(known, "parameter_name", None) for known in self.list_filter or ()}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find rows by exact values that an index has."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if "\x00" in term or len(term) > 2048:
            return queryset.none(), False
        return self.search(request, queryset, term), False

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Return the rows that `term` names: here, by id."""
        row_id = parse_id(term)
        return queryset.filter(pk=row_id) if row_id else queryset.none()

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list; stop reading it after LIST_TIMEOUT_MS and say so."""
        if request.method != "GET":
            return super().changelist_view(request, extra_context)
        try:
            with transaction.atomic():
                _set_timeout(f"{LIST_TIMEOUT_MS}ms")
                response = super().changelist_view(request, extra_context)
                if isinstance(response, TemplateResponse):
                    response.render()
                _set_timeout("DEFAULT")
            return response
        except OperationalError as error:
            if not isinstance(error.__cause__, QueryCanceled) or not request.GET:
                raise
            self.message_user(
                request,
                "Reading this selection took too long and was stopped. "
                "Add a filter, such as an organisation or a time.",
                messages.ERROR,
            )
            return HttpResponseRedirect(request.path)

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any], *args: Any) -> HttpResponse | None:
        """Run an action; a selection that names no possible row is refused, not an error."""
        to_id = self.opts.pk.to_python
        try:
            for value in request.POST.getlist(ACTION_CHECKBOX_NAME):
                if to_id(value) is None or "\x00" in value or len(value) > 40:
                    raise ValidationError("not an id")
        except (ValidationError, ValueError, OverflowError):
            self.message_user(request, "The selection was not understood; nothing was changed.", messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())
        response: HttpResponse | None = super().response_action(request, queryset, *args)
        back = parse_id(request.POST.get("back", ""))
        if isinstance(response, HttpResponseRedirect) and back is not None:
            return HttpResponseRedirect(
                reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[back])
            )
        return response

    # --- one object ---------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one row, with buttons for what may be done to it."""
        allowed = self.get_actions(request)
        buttons = [(name, action[2]) for name in self.object_actions if (action := allowed.get(name)) is not None]
        form = self.action_form(auto_id=None)
        context = {
            "object_buttons": buttons,
            "object_action_fields": [field for field in form if field.name not in {"action", "select_across"}],
            "changelist_url": reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"),
            **(extra_context or {}),
        }
        return super().change_view(request, object_id, form_url, context)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nothing is deleted here unless a subclass says how."""
        return False

    # --- who did what -------------------------------------------------------------------------------

    def audit(self, request: HttpRequest, action: str, row: Any, detail: dict[str, Any]) -> None:
        """Write an entry of the audit log about one row; the organisations' app gives the means."""
        raise NotImplementedError

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Note an addition, also in the audit log."""
        self.audit(request, f"{self.audit_word}.create", obj, {})
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Note a change, also in the audit log: the names of the fields, never their values."""
        fields = [
            name for part in message if isinstance(part, dict) for name in part.get("changed", {}).get("fields", [])
        ]
        self.audit(request, f"{self.audit_word}.change", obj, {"fields": sorted(fields)})
        return super().log_change(request, obj, message)


def _set_timeout(value: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout TO {'DEFAULT' if value == 'DEFAULT' else repr(value)}")


class ReadOnlyAdmin(BoundedAdmin):
    """A model that is only looked at."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody adds rows by hand."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes rows by hand."""
        return False


# --- Actions ------------------------------------------------------------------------------------


class TooMany(Exception):
    """An action was asked for on more than ACTION_BOUND rows."""


def selected_ids(queryset: QuerySet[Any]) -> list[Any]:
    """Return the ids of what an action shall work on.  Raises TooMany over ACTION_BOUND."""
    ids = list(queryset.values_list("pk", flat=True)[: ACTION_BOUND + 1])
    if len(ids) > ACTION_BOUND:
        raise TooMany
    return ids


def chunks(ids: Sequence[Any]) -> Iterator[list[Any]]:
    """Return `ids` in pieces of ACTION_CHUNK."""
    for start in range(0, len(ids), ACTION_CHUNK):
        yield list(ids[start : start + ACTION_CHUNK])


def report(
    model_admin: BoundedAdmin, request: HttpRequest, what: str, changed: int, left_alone: dict[str, int]
) -> None:
    """Tell the operator how many rows changed and why the others didn't."""
    parts = [f"{changed} {what}."]
    rest = {reason: count for reason, count in left_alone.items() if count > 0}
    if rest:
        reasons = "; ".join(f"{count} {reason}" for reason, count in rest.items())
        parts.append(f"{sum(rest.values())} left alone: {reasons}.")
    model_admin.message_user(request, " ".join(parts), messages.SUCCESS if changed else messages.WARNING)


def refuse_too_many(model_admin: BoundedAdmin, request: HttpRequest, instead: str) -> None:
    """Tell the operator that an action was asked for on too much, and what to use instead."""
    model_admin.message_user(
        request,
        f"More than {ACTION_BOUND:,} rows match, which is too many for one request. Nothing was changed. {instead}",
        messages.ERROR,
    )


def shown_once(model_admin: BoundedAdmin, request: HttpRequest, row: Model, what: str, secret: str) -> TemplateResponse:
    """Answer with a page that shows a new secret; it is in this answer and nowhere else."""
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "title": f"New {what}",
        "what": what,
        "secret": secret,
        "object_url": reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk]),
    }
    response = TemplateResponse(request, "admin/shown_once.html", context)
    response["Cache-Control"] = "no-store"
    return response
