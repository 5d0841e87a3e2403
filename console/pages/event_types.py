"""The admin's pages for event types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from console.filters import OrganizationFilter
from console.model_admin import BoundedAdmin
from core.ids import parse_id
from events import event_types
from events.models import EventType
from events.payload import event_type_error
from events.schemas import SchemaError, check_schema
from webhooks.display.formatting import badge, format_time, short

if TYPE_CHECKING:
    _EventTypeForm = forms.ModelForm[EventType]
else:
    _EventTypeForm = forms.ModelForm


class EventTypeForm(_EventTypeForm):
    """A type's name, description, schema, and examples."""

    archived = forms.BooleanField(required=False, help_text="New events shouldn't have this type any more.")

    class Meta:
        model = EventType
        fields = ("organization", "name", "description", "schema", "examples")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["archived"] = self.instance.archived

    def clean(self) -> Any:
        """Refuse one type too many, as the API does."""
        cleaned = super().clean() or self.cleaned_data
        organization = cleaned.get("organization")
        if self.instance._state.adding and organization is not None and event_types.is_full(organization.pk):
            self.add_error(None, f"The organization has {settings.MAX_EVENT_TYPES} event types, which is the limit.")
        return cleaned

    def clean_name(self) -> str:
        """Check the name as the API does."""
        name = str(self.cleaned_data["name"])
        if reason := event_type_error(name):
            raise ValidationError(f"The name {reason}.")
        return name

    def clean_schema(self) -> Any:
        """Check the schema as the API does."""
        schema = self.cleaned_data["schema"]
        if schema is not None:
            try:
                check_schema(schema)
            except SchemaError as error:
                raise ValidationError(f"The schema {error.pointer} {error.reason}.") from None
        return schema

    def clean_examples(self) -> Any:
        """Check that there is a list of them."""
        examples = self.cleaned_data["examples"]
        if examples in (None, ""):
            return []
        if not isinstance(examples, list):
            raise ValidationError("Must be an array of examples, such as [{}].")
        return examples


class ArchivedFilter(admin.SimpleListFilter):
    """Types that are archived, or that aren't."""

    title = "status"
    parameter_name = "archived"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("no", "in use"), ("yes", "archived")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset if value is None else queryset.filter(archived_at__isnull=value == "no")


@admin.register(EventType)
class EventTypeAdmin(BoundedAdmin):
    """The organizations' catalogs of event types.  Here, a type that isn't used any more is archived, not deleted."""

    audit_noun = "event_type"
    form = EventTypeForm
    list_display = ("name_display", "organization_link", "state", "has_schema", "version", "updated_display")
    list_select_related = ("organization",)
    list_filter = (OrganizationFilter, ArchivedFilter)
    search_fields = ("name",)
    search_help_text = "Search by the beginning of a name or by an exact id."
    ordering = ("-id",)
    autocomplete_fields = ("organization",)

    def get_fields(self, request: HttpRequest, obj: EventType | None = None) -> Any:
        return ("organization", "name", "description", "archived", "schema", "examples", *self.shown(obj))

    def get_readonly_fields(self, request: HttpRequest, obj: EventType | None = None) -> Any:
        """Return what can't be changed: the name stays, because events have it."""
        return ("organization", "name", *self.shown(obj)) if obj is not None else ()

    def shown(self, obj: EventType | None) -> tuple[str, ...]:
        """Return what is only shown."""
        return ("id", "version", "created_at", "updated_at") if obj is not None else ()

    def save_model(self, request: HttpRequest, obj: EventType, form: Any, change: bool) -> None:
        """Save it as the API does, so that every process notices the change."""
        fields = ("description", "schema", "examples", "archived")
        values = {name: form.cleaned_data[name] for name in fields if name in form.cleaned_data}
        if change:
            event_types.change(obj, values)
        else:
            made = event_types.create(obj.organization_id, name=obj.name, **values)
            obj.pk = made.pk
            obj.refresh_from_db()

    @admin.display(description="name")
    def name_display(self, row: EventType) -> str:
        return short(row.name)

    @admin.display(description="status")
    def state(self, row: EventType) -> SafeString:
        return badge("disabled", "archived") if row.archived else badge("active", "in use")

    @admin.display(description="updated at")
    def updated_display(self, row: EventType) -> str:
        return format_time(row.updated_at)

    @admin.display(description="schema", boolean=True)
    def has_schema(self, row: EventType) -> bool:
        return row.schema is not None

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id or the beginning of the name."""
        row_id = parse_id(term)
        return queryset.filter(pk=row_id) if row_id else queryset.filter(name__startswith=term)
