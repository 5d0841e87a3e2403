"""The admin's pages for organisations, API keys, the audit log and staff."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group, User
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from core.admin_tools import (
    LIST_BOUND,
    SpanFilter,
    TooMany,
    badge,
    code_block,
    lines,
    list_link,
    refuse_too_many,
    report,
    selected_ids,
    short,
    shown_once,
)
from core.ids import parse_id
from orgs import audit, keys
from orgs.admin_tools import AuditedMixin, OrganizationFilter, TenantAdmin, TenantReadOnlyAdmin
from orgs.models import ApiKey, AuditEntry, Organization, Scope, all_scopes

if TYPE_CHECKING:
    _ApiKeyForm = forms.ModelForm[ApiKey]
else:
    _ApiKeyForm = forms.ModelForm

STAFF_GROUPS = ("viewer", "operator", "owner")


@admin.register(Organization)
class OrganizationAdmin(TenantAdmin):
    """Tenants and their limits."""

    audit_word = "organization"
    list_display = ("name_shown", "state", "events_per_minute", "retention_days", "created_at")
    search_fields = ("name",)
    search_help_text = "The beginning of a name, or an id."
    ordering = ("name",)
    fields = ("name", "is_active", "events_per_minute", "retention_days", "id", "created_at", "rows")
    readonly_fields = ("id", "created_at", "rows")

    @admin.display(description="name")
    def name_shown(self, row: Organization) -> str:
        """Return the name with invisible characters shown."""
        return short(row.name)

    @admin.display(description="state")
    def state(self, row: Organization) -> SafeString:
        """Return whether the organisation may call."""
        return badge("active") if row.is_active else badge("disabled", "inactive")

    @admin.display(description="its rows")
    def rows(self, row: Organization) -> SafeString | str:
        """Return links to everything of the organisation."""
        if row._state.adding:
            return "-"
        return format_html_join(
            " · ",
            "{}",
            (
                (list_link(model, label, organization=row.pk, **more),)
                for model, label, more in (
                    ("events_event", "events", {}),
                    ("events_event", "events in error", {"status": "error"}),
                    ("webhooks_delivery", "deliveries", {}),
                    ("webhooks_delivery", "failed deliveries", {"status": "failed"}),
                    ("webhooks_subscription", "subscriptions", {}),
                    ("webhooks_bulkrun", "bulk runs", {}),
                    ("orgs_apikey", "API keys", {}),
                    ("orgs_auditentry", "audit entries", {}),
                )
            ),
        )

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id or the beginning of the name; both have an index."""
        row_id = parse_id(term)
        return queryset.filter(pk=row_id) if row_id else queryset.filter(name__startswith=term)


class ApiKeyForm(_ApiKeyForm):
    """A key's name, scopes and end."""

    scopes = forms.MultipleChoiceField(
        choices=[(scope.value, scope.value) for scope in Scope],
        widget=forms.CheckboxSelectMultiple,
        initial=all_scopes,
        help_text="What the key may do.",
    )

    class Meta:
        model = ApiKey
        fields = ("organization", "name", "scopes", "expires_at")

    def clean_expires_at(self) -> Any:
        """Refuse a new key that has already ended."""
        expires_at = self.cleaned_data["expires_at"]
        if self.instance._state.adding and expires_at is not None and expires_at <= timezone.now():
            raise forms.ValidationError("Must be in the future.")
        return expires_at


class KeyStateFilter(admin.SimpleListFilter):
    """Keys that work, or that don't any more."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the two."""
        return [("live", "not revoked"), ("revoked", "revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the keys in the state."""
        value = self.value()
        return queryset if value is None else queryset.filter(revoked_at__isnull=value == "live")


@admin.register(ApiKey)
class ApiKeyAdmin(TenantAdmin):
    """Keys: shown once when made, never again."""

    audit_word = "key"
    form = ApiKeyForm
    list_display = ("prefix", "name_shown", "organization_link", "state", "scopes_shown", "last_used_at", "created_at")
    list_select_related = ("organization",)
    list_filter = (OrganizationFilter, KeyStateFilter)
    search_fields = ("prefix",)
    search_help_text = "A key's prefix (the middle part of trk_<prefix>_…), or its id."
    ordering = ("-created_at", "-id")
    autocomplete_fields = ("organization",)
    actions = ("revoke",)
    object_actions = ("revoke",)
    _facts = ("id", "prefix", "state", "revoked_at", "last_used_at", "created_at")

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        """Return the form's fields and, of a key that exists, the facts."""
        return ("organization", "name", "scopes", "expires_at", *(self._facts if obj else ()))

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        """A key stays with its organisation."""
        return (*self._facts, "organization") if obj else ()

    @admin.display(description="name")
    def name_shown(self, row: ApiKey) -> str:
        """Return the name with invisible characters shown."""
        return short(row.name)

    @admin.display(description="state")
    def state(self, row: ApiKey) -> SafeString:
        """Return whether the key works."""
        if row.revoked_at is not None:
            return badge("failed", "revoked")
        if row.expires_at is not None and row.expires_at <= timezone.now():
            return badge("held", "expired")
        return badge("active")

    @admin.display(description="scopes")
    def scopes_shown(self, row: ApiKey) -> SafeString:
        """Return the scopes below each other."""
        return lines(["all"] if set(row.scopes) >= set(all_scopes()) else row.scopes)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id or prefix."""
        row_id = parse_id(term)
        if row_id:
            return queryset.filter(pk=row_id)
        parts = term.split("_")
        return queryset.filter(prefix=parts[1] if parts[0] == "trk" and len(parts) > 1 else term.rstrip("…"))

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Make the key, or keep the changed fields and no others."""
        if change:
            obj.save(update_fields=["name", "scopes", "expires_at"])
            return
        made, text = keys.create_api_key(
            obj.organization_id, name=obj.name, scopes=form.cleaned_data["scopes"], expires_at=obj.expires_at
        )
        obj.__dict__.update(made.__dict__)
        obj.shown_once = text  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """Show the key in this answer: it is kept nowhere that could show it again."""
        return shown_once(self, request, obj, "API key", obj.shown_once)  # type: ignore[attr-defined]

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Tell whether the member of staff may revoke keys."""
        return request.user.has_perm("orgs.revoke_apikey")

    @admin.action(description="Revoke", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        """Refuse the chosen keys from the next request on."""
        try:
            chosen = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, "Filter by organisation, or make the organisation inactive.")
            return
        changed = 0
        for key in ApiKey.objects.filter(pk__in=chosen):
            if keys.revoke(key):
                changed += 1
                audit.record_for_user(request, "key.revoke", key.organization_id, key.pk, {"prefix": key.prefix})
        report(self, request, "revoked", changed, {"already were": len(chosen) - changed})


class AuditSpanFilter(SpanFilter):
    """Entries of the last minutes, hours or days."""


_RECENT_ENTRIES = 50_000
_FIND_RECENT = """
SELECT id FROM (
    SELECT id, actor, action, target FROM orgs_auditentry ORDER BY created_at DESC, id DESC LIMIT %s
) AS recent WHERE actor = %s OR action = %s OR target = %s LIMIT %s
"""


@admin.register(AuditEntry)
class AuditEntryAdmin(TenantReadOnlyAdmin):
    """Who did what."""

    list_display = ("created_at", "actor_shown", "action", "target_shown", "organization_link", "address")
    list_display_links = ("created_at",)
    list_select_related = ("organization",)
    list_filter = (OrganizationFilter, AuditSpanFilter)
    search_fields = ("id",)
    search_help_text = (
        "An entry's id; or an actor (user:…, key:…), an action or a target, exact, "
        f"among the newest {_RECENT_ENTRIES:,}."
    )
    ordering = ("-created_at", "-id")
    fields = (
        "created_at", "actor_shown", "action", "target_shown", "detail_shown", "organization_link", "address",
        "request_id", "id",
    )  # fmt: skip

    @admin.display(description="actor")
    def actor_shown(self, row: AuditEntry) -> str:
        """Return the actor; a user name that failed to log in may be anything."""
        return short(row.actor, 200)

    @admin.display(description="target")
    def target_shown(self, row: AuditEntry) -> str:
        """Return what was acted on."""
        return short(row.target, 200)

    @admin.display(description="detail")
    def detail_shown(self, row: AuditEntry) -> SafeString:
        """Return the details as text."""
        return code_block(json.dumps(row.detail, ensure_ascii=False) if row.detail else "")

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id, or by an exact word among the newest entries."""
        row_id = parse_id(term)
        if row_id and AuditEntry.objects.filter(pk=row_id).exists():
            return queryset.filter(pk=row_id)
        with connection.cursor() as cursor:
            cursor.execute(_FIND_RECENT, [_RECENT_ENTRIES, term, term, term, LIST_BOUND])
            return queryset.filter(pk__in=[found[0] for found in cursor.fetchall()])


admin.site.unregister(User)


@admin.register(User)
class StaffAdmin(AuditedMixin, UserAdmin):  # type: ignore[type-arg]
    """Members of staff.  An owner gives and takes the three groups; anything above is a superuser's."""

    audit_word = "user"
    list_display = ("username", "is_active", "is_staff", "is_superuser", "groups_shown", "last_login")
    list_filter = ("is_staff", "is_superuser", "is_active", "groups")
    _owners_fieldsets: ClassVar = (
        (None, {"fields": ("username", "password")}),
        ("Access", {"fields": ("is_active", "is_staff", "groups")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )

    def audit(self, request: HttpRequest, action: str, row: Any, detail: dict[str, Any]) -> None:
        """Write an entry about a member of staff."""
        audit.record_for_user(request, action, None, row.username, detail)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Note an addition, also in the audit log."""
        self.audit(request, "user.create", obj, {})
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Note a change, also in the audit log."""
        self.audit(
            request, "user.change", obj,
            {"change": message if isinstance(message, str) else json.dumps(message), "groups": self.groups_shown(obj),
             "is_staff": obj.is_staff, "is_active": obj.is_active, "is_superuser": obj.is_superuser},
        )  # fmt: skip
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        """Note deletions, also in the audit log."""
        for user in queryset:
            self.audit(request, "user.delete", user, {})
        return super().log_deletions(request, queryset)

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """Return the users with their groups."""
        return super().get_queryset(request).prefetch_related("groups")

    @admin.display(description="groups")
    def groups_shown(self, row: User) -> str:
        """Return the names of the user's groups."""
        return ", ".join(sorted(group.name for group in row.groups.all())) or "-"

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Return what the member of staff may see and set."""
        if obj is not None and not request.user.is_superuser:
            return self._owners_fieldsets
        return super().get_fieldsets(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Dates are facts."""
        return (*super().get_readonly_fields(request, obj), "last_login", "date_joined")

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Let an owner give the three groups and no other."""
        if db_field.name == "groups" and not request.user.is_superuser:
            kwargs["queryset"] = Group.objects.filter(name__in=STAFF_GROUPS)
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Refuse an owner who would change somebody with more rights."""
        if not super().has_change_permission(request, obj):
            return False
        if obj is None or request.user.is_superuser:
            return True
        return not (
            obj.is_superuser or obj.user_permissions.exists() or obj.groups.exclude(name__in=STAFF_GROUPS).exists()
        )
