"""The admin's pages for members of staff."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.forms import UsernameField
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.debug import sensitive_post_parameters

from orgs import audit
from webhooks.display.formatting import format_time

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:  # the class takes no parameters when the program runs
    _ModelAdmin = admin.ModelAdmin

STAFF_GROUPS = ("viewer", "operator", "owner")


class LoginForm(AdminAuthenticationForm):
    """The log-in form.  It refuses a name longer than any user's, before anything stores it."""

    username = UsernameField(max_length=150, widget=forms.TextInput(attrs={"autofocus": True}))


admin.site.login_form = LoginForm
admin.site.unregister(User)
admin.site.unregister(Group)


class AuditedAdmin(_ModelAdmin):
    """Writes what is done to Django's own models to the audit log, in the transaction of the change."""

    audit_noun = ""

    def audit(self, request: HttpRequest, action: str, row: Any, detail: dict[str, Any]) -> None:
        """Write what was done to a row to the audit log."""
        audit.record_for_user(request, f"{self.audit_noun}.{action}", None, row, detail, name=str(row))

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show what the audit log says of the row."""
        row = self.get_object(request, object_id)
        if row is None or not self.has_view_permission(request, row):
            return super().history_view(request, object_id, extra_context)
        return HttpResponseRedirect(reverse("admin:orgs_auditentry_changelist", query={"target": str(row)}))

    def changed_detail(self, row: Any) -> dict[str, Any]:
        """Return what an entry says about the row besides the names of the changed fields."""
        return {}

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log an addition in the audit log, too."""
        self.audit(request, "create", obj, {})
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log a change in the audit log, too."""
        change = message if isinstance(message, str) else json.dumps(message)
        self.audit(request, "change", obj, {"change": change, **self.changed_detail(obj)})
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        """Log deletions in the audit log, too."""
        for row in queryset:
            self.audit(request, "delete", row, {})
        return super().log_deletions(request, queryset)

    def response_action(self, request: HttpRequest, *more: Any, **words: Any) -> HttpResponse | None:
        """Run an action, such as deleting the selected rows, in one transaction with its entries."""
        with transaction.atomic():
            return super().response_action(request, *more, **words)


@admin.register(Group)
class StaffGroupAdmin(AuditedAdmin, GroupAdmin):
    """Groups of staff.  Only a superuser changes them."""

    audit_noun = "group"


@admin.register(User)
class StaffAdmin(AuditedAdmin, UserAdmin):  # type: ignore[type-arg]
    """Users of the admin.  An owner assigns the three groups; anything beyond them takes a superuser."""

    audit_noun = "user"
    list_display = ("username", "is_active", "is_staff", "is_superuser", "groups_display", "last_login_display")
    list_filter = ("is_staff", "is_superuser", "is_active", "groups")
    _owners_fieldsets: ClassVar = (
        (None, {"fields": ("username", "password")}),
        ("Access", {"fields": ("is_active", "is_staff", "groups")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )

    def changed_detail(self, row: User) -> dict[str, Any]:
        """Return the rights that the user has now."""
        return {"groups": self.groups_display(row), "is_staff": row.is_staff, "is_active": row.is_active,
                "is_superuser": row.is_superuser}  # fmt: skip

    @method_decorator(sensitive_post_parameters())
    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Set somebody's password, in one transaction with the entry about it."""
        with transaction.atomic():
            return super().user_change_password(request, id, form_url)

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """Return users with their groups."""
        return super().get_queryset(request).prefetch_related("groups")

    @admin.display(description="last login")
    def last_login_display(self, row: User) -> str:
        return format_time(row.last_login)

    @admin.display(description="groups")
    def groups_display(self, row: User) -> str:
        return ", ".join(sorted(group.name for group in row.groups.all())) or "-"

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Hide from owners what only a superuser may set."""
        if obj is not None and not request.user.is_superuser:
            return self._owners_fieldsets
        return super().get_fieldsets(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Don't let users change the dates."""
        return (*super().get_readonly_fields(request, obj), "last_login", "date_joined")

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Let an owner assign only the three groups."""
        if db_field.name == "groups" and not request.user.is_superuser:
            kwargs["queryset"] = Group.objects.filter(name__in=STAFF_GROUPS)
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Keep owners from changing somebody with more rights than theirs."""
        if not super().has_change_permission(request, obj):
            return False
        if obj is None or request.user.is_superuser:
            return True
        return not (
            obj.is_superuser or obj.user_permissions.exists() or obj.groups.exclude(name__in=STAFF_GROUPS).exists()
        )
