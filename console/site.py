"""The admin site: Django's own under our name, with a dashboard on its first page."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django.contrib.admin import AdminSite
from django.db import transaction
from django.http import HttpRequest, HttpResponse
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

    # Logging in, logging out and changing one's password write to the audit log (orgs.signals, and below).  Each is one
    # transaction with its entry.

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the log-in form, or log in."""
        with _one_transaction(request):
            return super().login(request, extra_context)

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Log out."""
        with _one_transaction(request):
            return super().logout(request, extra_context)

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show the form for one's own password, or change it."""
        from orgs import audit  # here for the same reason as in `index`

        with _one_transaction(request):
            response = super().password_change(request, extra_context)
            if request.method == "POST" and response.status_code == 302:  # else the form is shown again
                audit.record_for_user(request, "user.change", None, request.user, {"change": "own password"})
            return response

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show the dashboard; those who may not see deliveries see only the list of pages."""
        context: dict[str, Any] = dict(extra_context or {})
        if request.user.has_perm("webhooks.view_delivery") and request.user.has_perm("events.view_event"):
            # Imported here: Django makes the site before it loads the models.
            from console.dashboard import read_figures, read_unhealthy

            context["operations"] = {"figures": read_figures(), "unhealthy": read_unhealthy()}
        return super().index(request, context)


def _one_transaction(request: HttpRequest) -> AbstractContextManager[Any]:
    """Return a transaction for a request that changes something; showing a form needs none."""
    return transaction.atomic() if request.method == "POST" else nullcontext()
