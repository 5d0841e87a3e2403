"""The admin's pages for members of staff."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.forms import UsernameField
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.http import HttpRequest

from orgs import audit

STAFF_GROUPS = ("viewer", "operator", "owner")


class LoginForm(AdminAuthenticationForm):
    """The log-in form.  It refuses a name longer than any user's, before anything stores it."""

    username = UsernameField(max_length=150, widget=forms.TextInput(attrs={"autofocus": True}))


admin.site.login_form = LoginForm
admin.site.unregister(User)


@admin.register(User)
class StaffAdmin(UserAdmin):  # type: ignore[type-arg]
    """Users of the admin.  An owner assigns the three groups; anything beyond them takes a superuser."""

    list_display = ("username", "is_active", "is_staff", "is_superuser", "groups_display", "last_login")
    list_filter = ("is_staff", "is_superuser", "is_active", "groups")
    _owners_fieldsets: ClassVar = (
        (None, {"fields": ("username", "password")}),
        ("Access", {"fields": ("is_active", "is_staff", "groups")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )

    def audit(self, request: HttpRequest, action: str, row: Any, detail: dict[str, Any]) -> None:
        """Write what was done to a user to the audit log."""
        audit.record_for_user(request, action, None, row.username, detail)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log an addition in the audit log, too."""
        self.audit(request, "user.create", obj, {})
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log a change in the audit log, too."""
        self.audit(
            request, "user.change", obj,
            {"change": message if isinstance(message, str) else json.dumps(message), "groups": self.groups_display(obj),
             "is_staff": obj.is_staff, "is_active": obj.is_active, "is_superuser": obj.is_superuser},
        )  # fmt: skip
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        """Log deletions in the audit log, too."""
        for user in queryset:
            self.audit(request, "user.delete", user, {})
        return super().log_deletions(request, queryset)

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """Return users with their groups."""
        return super().get_queryset(request).prefetch_related("groups")

    @admin.display(description="groups")
    def groups_display(self, row: User) -> str:
        return ", ".join(sorted(group.name for group in row.groups.all())) or "-"

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Hide from owners what only a superuser may set."""
        if obj is not None and not request.user.is_superuser:
            return self._owners_fieldsets
        return super().get_fieldsets(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Let nobody change the dates."""
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
