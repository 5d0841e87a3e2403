"""Endpoints: the list, one with its health, adding and editing."""

from __future__ import annotations

import uuid
from typing import Any

import orjson
from django.db import transaction
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone

from orgs.scopes import Scope
from portal.forms import EndpointForm
from portal.pages.rows import attempt_row, endpoint_row
from portal.web import NotAllowed, PortalView
from webhooks import handshake, probes, subscriptions
from webhooks.display import panels
from webhooks.display.formatting import code_block, short
from webhooks.display.series import SPANS, read_series
from webhooks.display.standing import count_waiting, recent_attempts
from webhooks.models import Delivery, DestinationKind, Subscription
from webhooks.states import with_state

SHOWN_ATTEMPTS = 10
# With more endpoints than this, the list has a search field.
MOST_AT_A_GLANCE = 5
LONGEST_TERM = 300
# What a page says after a change, by the parameter `done` of its URL.
DONE = {
    "saved": "The endpoint was saved.",
    "enabled": "The endpoint was enabled. Webhooks that were held for it are being sent.",
    "disabled": "The endpoint was disabled. New webhooks are held until you enable it.",
    "deleted": "The endpoint was deleted.",
}


class EndpointPage(PortalView):
    """A page about one endpoint of the session's organization."""

    section = "endpoints"

    def page(self, template: str, status: int = 200, **context: Any) -> HttpResponse:
        """Render a page; `url` is that of `row`, as it can be shown."""
        if row := context.get("row"):
            context = {"url": short(row.url, 2048), **context}
        return super().page(template, status, **context)

    def own_endpoints(self) -> Any:
        """Return the organization's endpoints, with their states.  Inboxes have no endpoint."""
        rows = subscriptions.of_organization(self.portal.organization_id).filter(kind=DestinationKind.HTTP)
        return with_state(rows)

    def own_endpoint(self, endpoint_id: uuid.UUID) -> Subscription:
        """Return one of them.  Raises Http404."""
        row: Subscription | None = self.own_endpoints().filter(pk=endpoint_id).first()
        if row is None:
            raise Http404
        return row

    def confirms(self, form: EndpointForm, row: Subscription | None = None) -> bool:
        """Shake hands with the endpoint if that was asked for; if it doesn't confirm, show why at the URL."""
        if not form.cleaned_data.get("handshake"):
            return True
        url = form.values["url"] if row is None or "url" in form.values else row.url
        try:
            handshake.shake_hands(self.portal.organization_id, url, form.values, row)
        except handshake.HandshakeFailed as error:
            form.refuse_url(f"The endpoint didn't confirm. {error.sentence}")
            return False
        except probes.TooManyProbes as error:
            raise NotAllowed("Wait a moment", error.sentence, 429) from None
        return True

    def to_endpoint(self, endpoint_id: uuid.UUID, done: str) -> HttpResponse:
        """Redirect to the endpoint's page, which says what was done."""
        return HttpResponseRedirect(f"{reverse('portal:endpoint', args=[endpoint_id])}?done={done}")


def public_key(row: Subscription) -> str:
    """Return the key with which the endpoint's owner verifies Ed25519 signatures; empty for a shared secret."""
    current = row.secret_details[0] if row.secret_details else {}
    return short(str(current.get("public_key") or ""), 200)


class EndpointListView(EndpointPage):
    """All endpoints, with their states."""

    def get(self, request: HttpRequest) -> HttpResponse:
        now = timezone.now()
        term = request.GET.get("q", "").strip()[:LONGEST_TERM].replace("\x00", "")
        endpoints = self.own_endpoints().order_by("-created_at", "-id")
        if term:
            endpoints = endpoints.filter(
                Q(url__icontains=term) | Q(description__icontains=term) | Q(uid__icontains=term)
            )
        rows = [endpoint_row(row, now) for row in endpoints]
        return self.page(
            "endpoints.html",
            endpoints=rows,
            term=term,
            has_search=bool(term) or len(rows) > MOST_AT_A_GLANCE,
            done=DONE.get(request.GET.get("done", "")),
        )


class EndpointView(EndpointPage):
    """One endpoint: its state, what to do about it, and its health."""

    def get(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        now = timezone.now()
        span = SPANS.get(request.GET.get("span", ""), SPANS["24h"])
        series = read_series(span, row.organization_id, row.pk)
        total = series.total()
        as_table = "table" in request.GET
        reads_deliveries = self.portal.may(Scope.DELIVERIES_READ)
        deliveries = Delivery.objects.filter(subscription_id=row.pk)
        attempts = recent_attempts(deliveries, SHOWN_ATTEMPTS) if reads_deliveries else []
        return self.page(
            "endpoint.html",
            endpoint=endpoint_row(row, now),
            row=row,
            filter=code_block(orjson.dumps(row.filter).decode(), "Filter") if row.filter else "",
            channels=", ".join(short(one, 128) for one in row.channels),
            public_key=public_key(row),
            metadata=[(short(name, 100), short(value, 500)) for name, value in sorted(row.metadata.items())],
            waiting=count_waiting(row.pk),
            span=span,
            spans=list(SPANS.values()),
            charts=None if as_table else panels.delivery_charts(series),
            table=panels.endpoint_table(series) if as_table else None,
            has_figures=bool(total.attempts),
            headline=panels.headline(series)[1:],
            causes=panels.failures_by_cause(total),
            attempts=[attempt_row(one) for one in attempts],
            done=DONE.get(request.GET.get("done", "")),
        )


class NewEndpointView(EndpointPage):
    """Adding an endpoint; the response shows its secret, once."""

    is_only_for_changes = True

    def get(self, request: HttpRequest) -> HttpResponse:
        return self.page("endpoint_form.html", form=EndpointForm(self.portal))

    def post(self, request: HttpRequest) -> HttpResponse:
        form = EndpointForm(self.portal, data=request.POST)
        if not form.is_valid():
            return self.page("endpoint_form.html", 422, form=form)
        if not self.confirms(form):
            return self.page("endpoint_form.html", 422, form=form)
        try:
            with transaction.atomic():
                row, secret = subscriptions.create(self.portal.organization_id, **form.values)
                self.record("subscription.create", row.id, form.handshake_done, name=row.url)
        except subscriptions.TooManySubscriptions:
            raise NotAllowed(
                "There are too many endpoints", "You have reached the limit. Delete one that you don't need."
            ) from None
        return self.page("secret.html", row=row, secret=secret, is_new=True, public_key=public_key(row))


class EditEndpointView(EndpointPage):
    """Changing an endpoint."""

    is_only_for_changes = True

    def get(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        return self.page("endpoint_form.html", form=EndpointForm(self.portal, row), row=row)

    def post(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        form = EndpointForm(self.portal, row, request.POST)
        if not form.is_valid():
            return self.page("endpoint_form.html", 422, form=form, row=row)
        if form.values:
            if not self.confirms(form, row):
                return self.page("endpoint_form.html", 422, form=form, row=row)
            with transaction.atomic():
                subscriptions.change(row, form.values)
                self.record(
                    "subscription.change", row.id, {"fields": sorted(form.values), **form.handshake_done}, name=row.url
                )
        return self.to_endpoint(row.pk, "saved")
