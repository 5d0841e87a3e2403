"""The base of our admin pages: bounded lists, exact search, an audit log, read-only where users don't edit."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import model_ngettext, unquote
from django.contrib.admin.views.main import ChangeList
from django.contrib.admin.widgets import AdminSplitDateTime, AutocompleteSelect
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import OperationalError, connection, transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from psycopg.errors import QueryCanceled

from console.export import FORMATS, export, progress_key
from console.formatting import object_link
from console.lists import BoundedChangeList, BoundedPaginator
from core.ids import new_id, parse_id
from orgs import audit
from orgs.models import Organization

LIST_TIMEOUT_MS = 5000


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:  # the class takes no parameters when the program runs
    _ModelAdmin = admin.ModelAdmin


class IdSelect(AutocompleteSelect):
    """Django's autocomplete, in which a value that isn't an id selects nothing instead of raising."""

    def optgroups(self, name: str, value: Any, attr: Any = None) -> Any:
        return super().optgroups(name, [one for one in value if parse_id(str(one))], attr)


class BoundedAdmin(_ModelAdmin):
    """A model whose list is bounded, whose search is exact, and whose changes are written to the audit log."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    list_per_page = 50
    list_max_show_all = 0
    sortable_by: ClassVar[tuple[str, ...]] = ()
    actions_on_bottom = False
    change_list_template = "console/change_list.html"
    change_form_template = "console/change_form.html"
    audit_noun = ""  # what stands before .create and .change in the audit log
    # What an export of the list holds: paths of fields by the names that they get; none where there is no export.
    export_columns: ClassVar[Mapping[str, str]] = {}
    # The actions that the page of one object offers as buttons.
    object_actions: ClassVar[Sequence[str]] = ()
    # Those that stop something; their buttons look different.
    dangerous_actions: ClassVar[Sequence[str]] = ()

    # --- lists --------------------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return BoundedChangeList

    def action_checkbox(self, obj: Any) -> SafeString:
        """Return Django's own checkbox; Django renders a template for each, which took a tenth of a list's time."""
        return format_html(
            '<input type="checkbox" name="{}" value="{}" class="action-select"'
            ' aria-label="Select this object for an action - {}">',
            ACTION_CHECKBOX_NAME, obj.pk, str(obj),
        )  # fmt: skip

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Allow only the filters in list_filter: any other could scan the table."""
        return lookup in {getattr(offered, "parameter_name", None) for offered in self.get_list_filter(request)}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find rows by exact values, for which there is an index."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if "\x00" in term or len(term) > 2048:
            return queryset.none(), False
        return self.search(request, queryset, term), False

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Return the rows that `term` names: by id, unless a subclass knows more."""
        row_id = parse_id(term)
        return queryset.filter(pk=row_id) if row_id else queryset.none()

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Show the list, or a message if reading it takes longer than LIST_TIMEOUT_MS."""
        if request.method != "GET":
            self._require_permission(request)
            return super().changelist_view(request, extra_context)
        try:
            if self.export_columns and request.GET.get("export") in FORMATS and self.has_view_permission(request):
                return self._export(request)
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
                "This list took too long to load. Narrow it with a filter, such as an organization or a time span.",
                messages.ERROR,
            )
            return HttpResponseRedirect(request.path)

    def _require_permission(self, request: HttpRequest) -> None:
        """Refuse an action that the user's groups don't allow.  Django would only say that no action was selected."""
        chosen = request.POST.get("action")
        if chosen in (self.actions or ()) and chosen not in self.get_actions(request):
            raise PermissionDenied

    def _export(self, request: HttpRequest) -> HttpResponseBase:
        """Return all rows that match the list's filters as a file, and write that to the audit log."""
        query: Any = request.GET.copy()
        form = query.pop("export")[-1]
        token = parse_id(query.pop("token", [""])[-1]) or new_id()
        request.GET = query
        request.is_export = True  # type: ignore[attr-defined]
        try:
            with transaction.atomic():
                _set_timeout(f"{LIST_TIMEOUT_MS}ms")
                rows = self.get_changelist_instance(request)
                _set_timeout("DEFAULT")
                self.audit(request, f"{self.audit_noun}.export", None, {"format": form, "filters": query.dict()})
        except IncorrectLookupParameters:
            return HttpResponseRedirect(request.path)
        name = str(self.opts.verbose_name_plural).replace(" ", "-")
        key = progress_key(request.user.pk, token)
        return export(self.export_querysets(request, rows), self.export_columns, name, form, key)

    def export_querysets(self, request: HttpRequest, rows: ChangeList) -> Iterable[tuple[QuerySet[Any], list[str]]]:
        """Yield what an export reads, each with an order that an index has."""
        yield rows.queryset, [str(name) for name in rows.get_ordering(request, rows.root_queryset)]

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any], *more: Any) -> HttpResponse | None:
        """Run an action; a selection that isn't made of ids gets a message instead of an error."""
        field: Any = self.opts.pk
        try:
            for value in request.POST.getlist(ACTION_CHECKBOX_NAME):
                if field.to_python(value) is None or "\x00" in value or len(value) > 40:
                    raise ValidationError("not an id")
        except (ValidationError, ValueError, OverflowError):
            self.message_user(request, "The selection is not valid. Nothing was changed.", messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())
        response: HttpResponse | None = super().response_action(request, queryset, *more)
        back = parse_id(request.POST.get("back", ""))
        if isinstance(response, HttpResponseRedirect) and back is not None:
            return HttpResponseRedirect(
                reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[back])
            )
        return response

    # --- forms --------------------------------------------------------------------------------------

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if "widget" not in kwargs and db_field.name in self.get_autocomplete_fields(request):
            kwargs["widget"] = IdSelect(db_field, self.admin_site, using=kwargs.get("using"))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Name the two inputs of a time, for which Django's widget has no labels."""
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if field is not None and isinstance(field.widget, AdminSplitDateTime):
            for part, word in zip(field.widget.widgets, ("date", "time"), strict=True):
                part.attrs["aria-label"] = f"{field.label}: {word}"
        return field

    # --- one object ---------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one row, with a button for each of its actions."""
        allowed: dict[str, Any] = self.get_actions(request)
        row = self.get_object(request, unquote(object_id))
        offered = [name for name in self.object_actions if name in allowed and (row is None or self.fits(name, row))]
        context = {
            "object_buttons": [(name, allowed[name][2]) for name in offered],
            "dangerous": self.dangerous_actions,
            "changelist_url": reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"),
            **(extra_context or {}),
        }
        return super().change_view(request, object_id, form_url, context)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the row, which a page that only shows it reads once."""
        if request.method != "GET" or from_field is not None:
            return super().get_object(request, object_id, from_field)
        known: dict[str, Any] = request.__dict__.setdefault("shown_rows", {})
        if object_id not in known:
            known[object_id] = super().get_object(request, object_id)
        return known[object_id]

    def fits(self, action: str, row: Any) -> bool:
        """Return whether an action makes sense for the row as it is now; its page leaves out the others' buttons."""
        return True

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse deletion; a subclass that allows it says how."""
        return False

    @admin.display(description="organization")
    def organization_link(self, row: Any) -> SafeString | str:
        return object_link(row.organization) if row.organization_id else "-"

    # --- audit log ----------------------------------------------------------------------------------

    def audit_target(self, row: Any) -> str:
        """Return what the audit log calls the row."""
        return str(row.pk)

    def audit(
        self,
        request: HttpRequest,
        action: str,
        row: Any,
        detail: dict[str, Any],
        reason: str = "",
        targets: Sequence[object] = (),
    ) -> None:
        """Write what was done to a row (None: to the list) to the audit log, in the current transaction.

        targets: the ids of what else it is about.
        """
        organization_id, target, name = (
            (_organization_id_of(row), self.audit_target(row), str(row)) if row is not None else (None, "", "")
        )
        audit.record_for_user(
            request, action, organization_id, target, detail, name=name, reason=reason, targets=targets
        )

    def audit_many(
        self, request: HttpRequest, action: str, rows: Sequence[Any], detail: dict[str, Any], reason: str = ""
    ) -> None:
        """Write one entry for what was done to rows of one organization, in the current transaction."""
        if len(rows) == 1:
            self.audit(request, action, rows[0], detail, reason)
        elif rows:
            audit.record_for_user(
                request, action, _organization_id_of(rows[0]), "", {"count": len(rows), **detail}, reason=reason,
                name=f"{len(rows)} {model_ngettext(self.opts, len(rows))}",
                targets=[self.audit_target(row) for row in rows],
            )  # fmt: skip

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show what the audit log says of the row, whoever did it: people, keys, commands or the system."""
        row = self.get_object(request, object_id)
        if row is None or not self.has_view_permission(request, row):
            return super().history_view(request, object_id, extra_context)  # which refuses in Django's way
        query = {"target": self.audit_target(row)}
        return HttpResponseRedirect(reverse("admin:orgs_auditentry_changelist", query=query))

    def audit_detail(self, request: HttpRequest) -> dict[str, Any]:
        """Return what the audit log keeps of an addition or a change beside the names of the fields."""
        return {}

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log an addition in the audit log, too."""
        self.audit(request, f"{self.audit_noun}.create", obj, self.audit_detail(request))
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log a change in the audit log, too: the names of the fields, never their values."""
        fields = [
            name for part in message if isinstance(part, dict) for name in part.get("changed", {}).get("fields", [])
        ]
        self.audit(request, f"{self.audit_noun}.change", obj, {"fields": sorted(fields), **self.audit_detail(request)})
        return super().log_change(request, obj, message)


def _organization_id_of(row: Model) -> uuid.UUID | None:
    if isinstance(row, Organization):
        return row.pk
    found: uuid.UUID | None = getattr(row, "organization_id", None)
    return found


def _set_timeout(value: str) -> None:
    with connection.cursor() as cursor:  # SQL, because the ORM doesn't know settings of a transaction
        cursor.execute(f"SET LOCAL statement_timeout TO {'DEFAULT' if value == 'DEFAULT' else repr(value)}")


class ReadOnlyAdmin(BoundedAdmin):
    """A model that isn't edited by hand."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def new_secret_page(
    model_admin: BoundedAdmin, request: HttpRequest, row: Model, what: str, secret: str
) -> TemplateResponse:
    """Return the page that shows a new row's secret, which is in this response and nowhere else.

    what: what was created, such as "API key".
    """
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "title": f"New {what}",
        "what": what,
        "secret": secret,
        "object": row,
        "object_url": reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk]),
    }
    response = TemplateResponse(request, "console/new_secret.html", context)
    response["Cache-Control"] = "no-store"
    return response
