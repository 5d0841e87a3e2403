"""The admin pages of a model: bounded, searched exactly, audited, read-only where nobody edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.views.main import ChangeList
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import ValidationError
from django.db import OperationalError, connection, transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from psycopg.errors import QueryCanceled

from console.lists import BoundedChangeList, BoundedPaginator
from core.ids import parse_id

LIST_TIMEOUT_MS = 5000


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:  # the class takes no parameters when the program runs
    _ModelAdmin = admin.ModelAdmin


class CarefulSelect(AutocompleteSelect):
    """A choice of a row by typing; a value that is no id chooses nothing, where Django's would raise."""

    def optgroups(self, name: str, value: Any, attr: Any = None) -> Any:
        """Return the chosen rows as options."""
        return super().optgroups(name, [one for one in value if parse_id(str(one))], attr)


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

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Allow no filter but those in list_filter: any other could scan the table."""
        return lookup in {getattr(offered, "parameter_name", None) for offered in self.get_list_filter(request)}

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
                "Add a filter, such as an organization or a time.",
                messages.ERROR,
            )
            return HttpResponseRedirect(request.path)

    def response_action(self, request: HttpRequest, queryset: QuerySet[Any], *more: Any) -> HttpResponse | None:
        """Run an action; a selection that names no possible row is refused, not an error."""
        field: Any = self.opts.pk
        try:
            for value in request.POST.getlist(ACTION_CHECKBOX_NAME):
                if field.to_python(value) is None or "\x00" in value or len(value) > 40:
                    raise ValidationError("not an id")
        except (ValidationError, ValueError, OverflowError):
            self.message_user(request, "The selection was not understood; nothing was changed.", messages.ERROR)
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
        """Return the field of a reference to another row."""
        if "widget" not in kwargs and db_field.name in self.get_autocomplete_fields(request):
            kwargs["widget"] = CarefulSelect(db_field, self.admin_site, using=kwargs.get("using"))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    # --- one object ---------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one row, with buttons for what may be done to it."""
        allowed: dict[str, Any] = self.get_actions(request)
        buttons = [(name, allowed[name][2]) for name in self.object_actions if name in allowed]
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
        """Write an entry of the audit log about one row; the organizations' app gives the means."""
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
