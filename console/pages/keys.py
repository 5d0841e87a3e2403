"""The admin's pages for API keys."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.safestring import SafeString

from console.actions import TooMany, refuse_too_many, report, selected_ids
from console.confirmation import Question, ReasonForm, answer, question_page, reason_of
from console.filters import OrganizationFilter
from console.formatting import object_link
from console.model_admin import BoundedAdmin, new_secret_page
from core.ids import parse_id
from orgs import keys
from orgs.models import ApiKey, AuditEntry
from orgs.scopes import Scope, all_scopes
from webhooks.display.formatting import badge, format_time, lines, short, table

if TYPE_CHECKING:
    _ApiKeyForm = forms.ModelForm[ApiKey]
else:
    _ApiKeyForm = forms.ModelForm

SHOWN_ROWS = 20


class ApiKeyForm(_ApiKeyForm):
    """A key's organization, name, scopes and expiry."""

    scopes = forms.MultipleChoiceField(
        choices=[(scope.value, scope.value) for scope in Scope],
        widget=forms.CheckboxSelectMultiple,
        initial=all_scopes,
        help_text="What the key is allowed to do.",
    )

    class Meta:
        model = ApiKey
        fields = ("organization", "name", "scopes", "expires_at")
        help_texts: ClassVar = {
            "name": "For people: which application uses the key.",
            "expires_at": "In UTC. Leave it empty for a key that works until it is revoked.",
        }

    def clean_expires_at(self) -> Any:
        """Refuse a new key that has expired already."""
        expires_at = self.cleaned_data["expires_at"]
        if self.instance._state.adding and expires_at is not None and expires_at <= timezone.now():
            raise forms.ValidationError("Must be in the future.")
        return expires_at

    def clean(self) -> Any:
        """Refuse a new or revived key above the organization's limit."""
        cleaned = super().clean() or {}
        organization = cleaned.get("organization") if self.instance._state.adding else self.instance.organization
        if organization is not None and (self.instance._state.adding or self._revives(cleaned)):
            try:
                # The lock lasts until the key is saved: Django's form views are one transaction.
                keys.require_room(organization.pk, lock=True)
            except keys.TooManyKeys as error:
                self.add_error("organization" if self.instance._state.adding else "expires_at", str(error))
        return cleaned

    def _revives(self, cleaned: dict[str, Any]) -> bool:
        """Return whether an expired key would work again.  The instance holds the new values when forms are cleaned."""
        if self.instance.revoked_at is not None or "expires_at" not in cleaned:
            return False
        before, after, now = self.initial.get("expires_at"), cleaned["expires_at"], timezone.now()
        return before is not None and before <= now and (after is None or after > now)


class KeyStateFilter(admin.SimpleListFilter):
    """Keys that are revoked, or that aren't."""

    title = "status"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("live", "not revoked"), ("revoked", "revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset if value is None else queryset.filter(revoked_at__isnull=value == "live")


@admin.register(ApiKey)
class ApiKeyAdmin(BoundedAdmin):
    """API keys.  A key is shown when it is created and never again."""

    audit_noun = "key"
    form = ApiKeyForm
    list_display = (
        "prefix",
        "name_display",
        "organization_link",
        "state",
        "scopes_display",
        "last_used_display",
        "created_display",
    )
    list_select_related = ("organization",)
    list_filter = (OrganizationFilter, KeyStateFilter)
    search_fields = ("prefix",)
    search_help_text = "Search by a key's exact id or prefix (the middle part of trk_<prefix>_…)."
    ordering = ("-created_at", "-id")
    autocomplete_fields = ("organization",)
    actions = ("revoke",)
    object_actions = ("revoke",)
    dangerous_actions = ("revoke",)
    _facts = ("id", "prefix", "state", "revoked_at", "revoked_by", "last_used_at", "created_at")

    def fits(self, action: str, row: ApiKey) -> bool:
        """Offer to revoke only a key that isn't revoked."""
        return row.revoked_at is None

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        """Return the fields of the form and, for an existing key, what is known about it."""
        return ("organization", "name", "scopes", "expires_at", *(self._facts if obj else ()))

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        """Don't let users move a key to another organization."""
        return (*self._facts, "organization") if obj else ()

    @admin.display(description="name")
    def name_display(self, row: ApiKey) -> str:
        return short(row.name)

    @admin.display(description="last used at")
    def last_used_display(self, row: ApiKey) -> str:
        return format_time(row.last_used_at)

    @admin.display(description="created at")
    def created_display(self, row: ApiKey) -> str:
        return format_time(row.created_at)

    @admin.display(description="status")
    def state(self, row: ApiKey) -> SafeString:
        if row.revoked_at is not None:
            return badge("failed", "revoked")
        if row.expires_at is not None and row.expires_at <= timezone.now():
            return badge("held", "expired")
        return badge("active")

    @admin.display(description="scopes")
    def scopes_display(self, row: ApiKey) -> SafeString:
        return lines(["all"] if set(row.scopes) >= set(all_scopes()) else row.scopes)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id or prefix."""
        row_id = parse_id(term)
        if row_id:
            return queryset.filter(pk=row_id)
        parts = term.split("_")
        return queryset.filter(prefix=parts[1] if parts[0] == "trk" and len(parts) > 1 else term.rstrip("…"))

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Create the key, or save only the fields that may change."""
        if change:
            obj.save(update_fields=["name", "scopes", "expires_at"])
            return
        made, text = keys.create_api_key(
            obj.organization_id, name=obj.name, scopes=form.cleaned_data["scopes"], expires_at=obj.expires_at
        )
        obj.__dict__.update(made.__dict__)
        obj.new_secret = text  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """Show the new key, which can't be read again."""
        return new_secret_page(self, request, obj, "API key", obj.new_secret)  # type: ignore[attr-defined]

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Whether the user may revoke keys, for `permissions=["revoke"]`."""
        return request.user.has_perm("orgs.revoke_apikey")

    @admin.action(description="Revoke", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        """Revoke the selected keys, for a reason; each is refused from the next request on."""
        try:
            chosen = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, "Filter by organization, or make the organization inactive.")
            return None
        rows = list(ApiKey.objects.filter(pk__in=chosen).select_related("organization"))
        live = [key for key in rows if key.revoked_at is None]
        form = answer(request, ReasonForm)
        if live and not form.is_valid():
            what = f"{len(live):,} API key{'' if len(live) == 1 else 's'}"
            these = "this key" if len(live) == 1 else "these keys"
            texts = [f"Requests with {these} are refused from the next one on. You can't undo this."]
            shown = table(("organization", "key", "last used"), [
                (short(key.organization.name, 60), short(str(key), 80), format_time(key.last_used_at))
                for key in live[:SHOWN_ROWS]
            ])  # fmt: skip
            question = Question(f"Revoke {what}?", f"Revoke {what}", texts, [("API keys", shown)])
            return question_page(self, request, form, question)
        changed = 0
        owned: dict[Any, list[ApiKey]] = defaultdict(list)
        for key in live:
            owned[key.organization_id].append(key)
        for of_one in owned.values():
            with transaction.atomic():
                done = [key for key in of_one if keys.revoke(key)]
                self.audit_many(request, "key.revoke", done, {}, reason_of(form))
            changed += len(done)
        report(self, request, "revoked", changed, {"already revoked": len(chosen) - changed})
        return None

    @admin.display(description="revoked by")
    def revoked_by(self, row: ApiKey) -> SafeString | str:
        """Return who revoked the key, and why, from the audit log."""
        if row.revoked_at is None:
            return "-"
        about = Q(target=str(row.pk)) | Q(targets__contains=[str(row.pk)])
        entry = AuditEntry.objects.filter(about, action="key.revoke").order_by("-created_at").first()
        if entry is None:
            return "-"
        reason = f": {short(entry.reason, 200)}" if entry.reason else ""
        return object_link(entry, f"{entry.actor} at {format_time(entry.created_at)}{reason}")
