"""Recovering what an endpoint has missed since a time: what that would send, and its progress."""

from __future__ import annotations

import datetime
import uuid

from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone

from portal.forms import SinceForm
from portal.pages.endpoints import EndpointPage
from webhooks.display.formatting import format_time
from webhooks.models import BulkRun
from webhooks.upkeep import recovery
from webhooks.upkeep.preview import preview_recovery


class RecoverView(EndpointPage):
    """Asks since when, shows what would be sent, and begins once that is confirmed."""

    is_only_for_changes = True

    def get(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        yesterday = timezone.now() - datetime.timedelta(days=1)
        if "since" not in request.GET:
            return self.page("recover.html", row=row, form=SinceForm(initial={"since": yesterday}))
        form = SinceForm(request.GET)
        if not form.is_valid():
            return self.page("recover.html", 422, row=row, form=form)
        found = preview_recovery(row, form.cleaned_data["since"])
        return self.page(
            "recover.html", row=row, form=form, found=found, most=f"{found.events:,}", total=f"{found.total:,}",
            since=format_time(form.cleaned_data["since"]),
        )  # fmt: skip

    def post(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        form = SinceForm(request.POST)
        if not form.is_valid():
            return self.page("recover.html", 422, row=row, form=form)
        with transaction.atomic():
            run = recovery.start(row, form.cleaned_data["since"], self.portal.actor)
            self.record(
                "subscription.recover", row.id, {"since": run.filters["since"], "run": str(run.id)}, name=row.url
            )
        return HttpResponseRedirect(reverse("portal:recovery", args=[row.pk, run.pk]))


class RecoveryView(EndpointPage):
    """The progress of a recovery."""

    def get(self, request: HttpRequest, endpoint_id: uuid.UUID, run_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        run = BulkRun.objects.filter(pk=run_id, subscription=row, kind=BulkRun.Kind.RECOVER).first()
        if run is None:
            raise Http404
        since = format_time(datetime.datetime.fromisoformat(run.filters["since"]))
        is_running = run.state == BulkRun.State.RUNNING
        return self.page(
            "recovery.html", row=row, run=run, since=since, is_running=is_running, visited=f"{run.visited:,}",
            queued=f"{run.queued:,}", held=f"{run.held:,}",
        )  # fmt: skip
