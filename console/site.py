"""The admin site: Django's own under our name, with a dashboard on its first page."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.template.response import TemplateResponse


class TriggersAdminSite(AdminSite):
    """Django's admin under our name, with the operator's figures on top."""

    site_header = "Triggers API"
    site_title = "Triggers API"
    index_title = "Operations"
    index_template = "console/dashboard.html"

    def get_urls(self) -> list[Any]:
        """Leave out the redirect to a row's page on the site: no row has one, and an invalid id would be an error."""
        return [route for route in super().get_urls() if getattr(route, "name", None) != "view_on_site"]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show the dashboard; those who may not see deliveries see only the list of pages."""
        context: dict[str, Any] = dict(extra_context or {})
        if request.user.has_perm("webhooks.view_delivery") and request.user.has_perm("events.view_event"):
            # Imported here: Django makes the site before it loads the models.
            from console.dashboard import read_figures, read_unhealthy

            context["operations"] = {"figures": read_figures(), "unhealthy": read_unhealthy()}
        return super().index(request, context)
