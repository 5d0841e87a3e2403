"""What the admin pages of tenants' rows share: the audit log and the filter by organization."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from console.formatting import object_link, short
from console.model_admin import BoundedAdmin, ReadOnlyAdmin
from core.ids import parse_id
from orgs import audit
from orgs.models import Organization

# The filter offers this many organizations by name; the others are reached from their own pages.
OFFERED = 15


def organization_of(row: Model) -> uuid.UUID | None:
    """Return the organization that a row belongs to, if any."""
    if isinstance(row, Organization):
        return row.pk
    found: uuid.UUID | None = getattr(row, "organization_id", None)
    return found


class OrganizationFilter(admin.SimpleListFilter):
    """Rows of one organization."""

    title = "organization"
    parameter_name = "organization"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the first organizations by name, and the chosen one."""
        offered = list(Organization.objects.order_by("name")[:OFFERED])
        chosen = parse_id(self.value() or "")
        if chosen and all(row.pk != chosen for row in offered):
            offered += Organization.objects.filter(pk=chosen)
        return [(str(row.pk), short(row.name, 40)) for row in offered]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the organization's rows."""
        value = self.value()
        if value is None:
            return queryset
        organization_id = parse_id(value)
        return queryset.filter(organization_id=organization_id) if organization_id else queryset.none()


class AuditedMixin:
    """Writes what is done in the admin to the audit log."""

    audit_word: str

    def audit(self, request: HttpRequest, action: str, row: Any, detail: dict[str, Any]) -> None:
        """Write an entry about one row."""
        audit.record_for_user(request, action, organization_of(row), row.pk, detail)

    @admin.display(description="organization")
    def organization_link(self, row: Any) -> SafeString | str:
        """Return a link to the row's organization."""
        return object_link(row.organization) if row.organization_id else "-"


class TenantAdmin(AuditedMixin, BoundedAdmin):
    """An organization's rows that can be made or changed."""


class TenantReadOnlyAdmin(AuditedMixin, ReadOnlyAdmin):
    """An organization's rows that are only looked at."""
