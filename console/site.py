"""The admin site: Django's own under our name, with the dashboard as its first page."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.template.response import TemplateResponse


class TriggersAdminSite(AdminSite):
    """Django's admin under our name, with the operator's figures first."""

    site_header = "Triggers API"
    site_title = "Triggers API"
    index_title = "Operations"
    index_template = "admin/operations.html"

    def get_urls(self) -> list[Any]:
        """Leave out the way to a row's page outside the admin: none has one, and a garbage id is an error there."""
        return [route for route in super().get_urls() if getattr(route, "name", None) != "view_on_site"]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show how things are now; those who may not see deliveries see the list of pages only."""
        context: dict[str, Any] = dict(extra_context or {})
        if request.user.has_perm("webhooks.view_delivery") and request.user.has_perm("events.view_event"):
            # Imported here: Django makes the site before it loads the models.
            from console.dashboard import read_figures, read_troubled

            context["operations"] = {"figures": read_figures(), "troubled": read_troubled()}
        return super().index(request, context)
