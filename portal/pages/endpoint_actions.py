"""The buttons of an endpoint's page: sending a test event, enabling, disabling, deleting."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from portal import texts
from portal.forms import DisableForm
from portal.pages.endpoints import EndpointPage
from portal.web import NotAllowed
from webhooks import endpoint_test, probes, subscriptions
from webhooks.display.causes import error_words
from webhooks.display.formatting import code_block, format_duration
from webhooks.models import Subscription


class EndpointActionPage(EndpointPage):
    """A page whose POST does something to an endpoint."""

    is_only_for_changes = True

    def auditor(self, action: str, row: Subscription, reason: str = "") -> Callable[[], None]:
        """Return a function that writes the audit entry, for the transaction that makes the change."""
        return partial(self.record, action, row.id, name=row.url, reason=reason)


class TestView(EndpointActionPage):
    """A test event, whose outcome is shown at once."""

    def post(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        try:
            result = endpoint_test.send_test_event(row)
        except probes.TooManyProbes as error:
            raise NotAllowed("Wait a moment", error.sentence, 429) from None
        with transaction.atomic():
            self.record("subscription.test", row.id, result.for_audit(), name=row.url)
        outcome = result.outcome
        about, advice = texts.advice(outcome.failure.value if outcome.failure else "", outcome.status_code)
        return self.page(
            "test_result.html",
            row=row,
            result=result,
            sentence=result.summary,
            words=error_words(outcome.failure.value if outcome.failure else "", outcome.status_code),
            duration=format_duration(result.duration_ms),
            body=code_block(outcome.body, "Response body") if outcome.body else "",
            advice=advice,
            about=about,
        )


class EnableView(EndpointActionPage):
    """Enabling an endpoint."""

    def post(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        subscriptions.enable(row, audit=self.auditor("subscription.enable", row))
        return self.to_endpoint(row.pk, "enabled")


class DisableView(EndpointActionPage):
    """Disabling an endpoint, with a reason."""

    def get(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        return self.page("disable.html", row=self.own_endpoint(endpoint_id), form=DisableForm())

    def post(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        form = DisableForm(request.POST)
        if not form.is_valid():
            return self.page("disable.html", 422, row=row, form=form)
        reason = form.cleaned_data["reason"]
        subscriptions.disable(row, reason, audit=self.auditor("subscription.disable", row, reason))
        return self.to_endpoint(row.pk, "disabled")


class DeleteView(EndpointActionPage):
    """Deleting an endpoint."""

    def get(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        return self.page("delete.html", row=self.own_endpoint(endpoint_id))

    def post(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        subscriptions.delete(row, audit=self.auditor("subscription.delete", row))
        return HttpResponseRedirect(f"{reverse('portal:endpoints')}?done=deleted")
