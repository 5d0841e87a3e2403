"""The admin's pages for organizations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from console.formatting import list_link
from console.model_admin import BoundedAdmin
from core.ids import parse_id
from events import event_types
from orgs.models import Organization
from webhooks.display.formatting import badge, format_time, short

if TYPE_CHECKING:
    _OrganizationForm = forms.ModelForm[Organization]
else:
    _OrganizationForm = forms.ModelForm

# As Django names changed fields in its log: by their labels.
_WITH_OWN_ENTRY = {"Is active", "Reason to deactivate"}


class OrganizationForm(_OrganizationForm):
    """An organization, and why it is made inactive."""

    deactivation_reason = forms.CharField(
        label="Reason to deactivate",
        max_length=300,
        required=False,
        widget=forms.TextInput(attrs={"size": 60}),
        help_text="Required to make an active organization inactive; shown in the audit log.",
    )

    class Meta:
        model = Organization
        fields = ("name", "is_active", "events_per_minute", "retention_days", "event_type_strictness")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "event_type_strictness" in self.fields:
            self.fields["event_type_strictness"].required = False

    def clean_event_type_strictness(self) -> str:
        """Keep the current value if none was chosen."""
        return self.cleaned_data["event_type_strictness"] or self.instance.event_type_strictness

    def clean(self) -> Any:
        """Ask for a reason if the organization becomes inactive."""
        cleaned = super().clean() or self.cleaned_data
        deactivates = not self.instance._state.adding and "is_active" in self.changed_data and not cleaned["is_active"]
        if deactivates and not cleaned.get("deactivation_reason", "").strip():
            self.add_error("deactivation_reason", "Say why the organization is made inactive.")
        return cleaned


# The lists that an organization's page leads to, each with its filters.  Apps above the console add theirs.
RELATED: list[tuple[str, str, dict[str, str]]] = [
    ("events_event", "events", {}),
    ("events_event", "events in error", {"status": "error"}),
    ("events_eventtype", "event types", {}),
    ("webhooks_delivery", "deliveries", {}),
    ("webhooks_delivery", "failed deliveries", {"status": "failed"}),
    ("webhooks_subscription", "subscriptions", {}),
    ("webhooks_bulkrun", "bulk runs", {}),
    ("orgs_apikey", "API keys", {}),
    ("orgs_auditentry", "audit entries", {}),
]


@admin.register(Organization)
class OrganizationAdmin(BoundedAdmin):
    """Organizations and their limits."""

    audit_noun = "organization"
    form = OrganizationForm
    list_display = ("name_display", "status", "events_per_minute", "retention_days", "created_display")
    search_fields = ("name",)
    search_help_text = "Search by the beginning of a name or by an exact id."
    ordering = ("name",)
    _settings = (
        "name", "is_active", "events_per_minute", "retention_days", "keep_exchanges", "event_type_strictness",
    )  # fmt: skip
    _facts = ("id", "created_at", "related")

    def get_fields(self, request: HttpRequest, obj: Organization | None = None) -> Any:
        """Return the settings, with the reason where it may be needed, and what is known about the organization."""
        may_deactivate = obj is not None and obj.is_active and self.has_change_permission(request, obj)
        reason = ("deactivation_reason",) if may_deactivate else ()
        return (*self._settings[:2], *reason, *self._settings[2:], *self.get_readonly_fields(request, obj))

    def get_readonly_fields(self, request: HttpRequest, obj: Organization | None = None) -> Any:
        """Return what is known about an organization; of a new one there is nothing."""
        return self._facts if obj else ()

    def save_model(self, request: HttpRequest, obj: Organization, form: Any, change: bool) -> None:
        """Save it, and say in the audit log if it was made inactive, or active again, and why."""
        super().save_model(request, obj, form, change)
        if change and "event_type_strictness" in form.changed_data:
            event_types.set_strictness(obj.pk, obj.event_type_strictness)
        if change and "is_active" in form.changed_data:
            action = "organization.activate" if obj.is_active else "organization.deactivate"
            reason = " ".join(form.cleaned_data.get("deactivation_reason", "").split())
            self.audit(request, action, obj, {}, "" if obj.is_active else reason)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log what else was changed; that it was made inactive has a separate entry."""
        for part in message:
            if isinstance(part, dict) and "fields" in part.get("changed", {}):
                kept = [name for name in part["changed"]["fields"] if name not in _WITH_OWN_ENTRY]
                part["changed"]["fields"] = kept
                if not kept:
                    return None
        return super().log_change(request, obj, message)

    @admin.display(description="name")
    def name_display(self, row: Organization) -> str:
        return short(row.name)

    @admin.display(description="created at")
    def created_display(self, row: Organization) -> str:
        return format_time(row.created_at)

    @admin.display(description="status")
    def status(self, row: Organization) -> SafeString:
        return badge("active") if row.is_active else badge("disabled", "inactive")

    @admin.display(description="related objects")
    def related(self, row: Organization) -> SafeString:
        return format_html_join(
            " · ",
            "{}",
            ((list_link(model, label, organization=row.pk, **more),) for model, label, more in RELATED),
        )

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id or the beginning of the name; both have an index."""
        row_id = parse_id(term)
        return queryset.filter(pk=row_id) if row_id else queryset.filter(name__startswith=term)
