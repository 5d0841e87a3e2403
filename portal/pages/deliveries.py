"""Deliveries: the list with its filters, one with the whole exchange of each attempt, and the retry."""

from __future__ import annotations

import datetime
import uuid
from typing import Any
from urllib.parse import urlencode

from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone

from core.ids import parse_id
from core.query import PAGE_PARAMETERS, ParameterError, moment, page
from core.wakeups import WEBHOOKS, wake
from events.models import Event
from orgs.scopes import Scope
from portal import meanings, texts
from portal.pages.rows import attempt_row, delivery_row
from portal.web import NotAllowed, PortalView
from webhooks import delivery_actions, subscriptions
from webhooks.delivery_actions import DeliveryAction
from webhooks.delivery_filters import matching_deliveries
from webhooks.display.exchange import exchange_blocks
from webhooks.display.formatting import format_time, host_of_url, short
from webhooks.display.standing import count_held_up
from webhooks.inboxes import is_inbox
from webhooks.models import Delivery, DeliveryAttempt, DeliveryStatus, DestinationKind
from webhooks.ordering_keys import waits_for
from webhooks.states import DeliveryState, state_of

MAX_SHOWN = 25
MAX_ATTEMPTS_SHOWN = 50
# A filter by type finds the deliveries of this many of the newest events of that type.
MAX_EVENTS_OF_TYPE = 2000
MAX_ENDPOINTS_OFFERED = 200
# What a page says after a change, by the parameter `done` of its URL.
DONE = {
    "retried": "We're trying again. The result will appear on this page.",
    "tried": "We tried again. This is the result.",
    "again": "It can be fetched again.",
    "skipped": "The webhook was skipped. The ones that waited for it can be sent now.",
}
AGES = {"1h": ("last hour", 1), "24h": ("last 24 hours", 24), "7d": ("last 7 days", 24 * 7)}


class DeliveryPage(PortalView):
    """A page about deliveries of the session's organization."""

    section = "deliveries"
    needs = Scope.DELIVERIES_READ
    needs_to_change = Scope.DELIVERIES_RETRY

    def own_deliveries(self, filters: dict[str, Any] | None = None) -> QuerySet[Delivery]:
        """Return the organization's deliveries that meet the filters."""
        rows = matching_deliveries({**(filters or {}), "org": self.portal.organization_id})
        return rows.select_related("event", "subscription__queue").defer("event__data")

    def own_delivery(self, delivery_id: uuid.UUID) -> Delivery:
        """Return one of them.  Raises Http404."""
        row = self.own_deliveries().filter(pk=delivery_id).first()
        if row is None:
            raise Http404
        return row

    def earlier(self, row: Delivery) -> Delivery | None:
        """Return the delivery of the same ordering key that has to be over before this one is sent."""
        earlier_id = waits_for(row)
        return self.own_deliveries().filter(pk=earlier_id).first() if earlier_id else None

    def is_skippable(self, row: Delivery) -> bool:
        """Tell whether the delivery can be given up, so that its ordering key goes on."""
        can_be = row.ordering_key is not None and row.subscription.deleted_at is None
        return can_be and state_of(row) in DeliveryAction.SKIP.states

    def take_action(self, action: DeliveryAction, row: Delivery) -> bool:
        """Take an action, with its audit entry, and wake the workers; return whether it changed the delivery."""
        with transaction.atomic():
            changed = delivery_actions.apply(action, [row.pk], announce=False)
            if changed:
                self.record(f"delivery.{action.verb}", row.pk, name=f"{row.event.type} to {row.subscription.url}")
        if changed:
            wake(WEBHOOKS)
        return bool(changed)


class DeliveryListView(DeliveryPage):
    """The deliveries, newest first, by status, type, endpoint, and time."""

    def get(self, request: HttpRequest) -> HttpResponse:
        given = {name: request.GET.get(name, "").strip() for name in ("status", "type", "endpoint", "age", "until")}
        filters, errors = self._filters(given)
        found: dict[str, Any] = {"data": [], "next_cursor": None}
        if not errors:
            try:
                parameters: dict[str, Any] = {"limit": MAX_SHOWN}
                if cursor := request.GET.get("cursor", ""):
                    parameters["cursor"] = PAGE_PARAMETERS["cursor"](cursor)
                # The ids first: a list is read in parts, which can't be joined with other tables.
                rows = matching_deliveries({**filters, "org": self.portal.organization_id})
                found = page(rows, parameters, lambda row: {"id": row.pk})
            except ParameterError:
                errors = ["This page no longer exists. Start from the first one."]
        ids = [row["id"] for row in found["data"]]
        by_id = {row.pk: row for row in self.own_deliveries().filter(pk__in=ids)}
        chosen = {name: value for name, value in given.items() if value}
        older = {**chosen, "cursor": found["next_cursor"]}
        return self.page(
            "deliveries.html",
            422 if errors else 200,
            deliveries=[delivery_row(by_id[pk]) for pk in ids if pk in by_id],
            statuses=DeliveryState.values,
            endpoints=self._endpoints(),
            ages=[(name, label) for name, (label, _) in AGES.items()],
            given=given,
            is_filtered=bool(chosen),
            errors=errors,
            older=f"?{urlencode(older)}" if found["next_cursor"] else "",
            newest=f"?{urlencode(chosen)}" if "cursor" in request.GET else "",
        )

    def _endpoints(self) -> list[tuple[str, str]]:
        rows = subscriptions.of_organization(self.portal.organization_id).order_by("-created_at", "-id")
        return [
            (str(pk), short(host_of_url(url, with_path=True), 80))
            for pk, url in rows.values_list("pk", "url")[:MAX_ENDPOINTS_OFFERED]
        ]

    def _filters(self, given: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
        """Return the filters as `matching_deliveries` takes them, and what is wrong with them."""
        filters: dict[str, Any] = {}
        errors = []
        if given["status"] in DeliveryState.values:
            filters["status"] = given["status"]
        elif given["status"]:
            errors.append("There is no such status.")
        if given["endpoint"]:
            endpoint_id = parse_id(given["endpoint"])
            if endpoint_id is None:
                errors.append("There is no such endpoint.")
            filters["subscription"] = endpoint_id
        if given["age"] in AGES:
            filters["since"] = timezone.now() - datetime.timedelta(hours=AGES[given["age"]][1])
        elif given["age"]:
            errors.append("There is no such time.")
        if given["until"]:
            try:
                filters["until"] = moment(given["until"])
            except ParameterError:
                errors.append("Enter a time such as 2026-01-31T12:00.")
        if given["type"] and not errors:
            event_type = given["type"][:255].replace("\x00", "")
            events = Event.objects.filter(organization_id=self.portal.organization_id, type=event_type)
            newest = events.filter(status__in=["processed", "error"]).order_by("-created_at", "-id")
            found = list(newest.values_list("pk", "created_at")[:MAX_EVENTS_OF_TYPE])
            filters["events"] = [pk for pk, _ in found]
            if found:
                # No delivery is older than its event.  Without this bound, PostgreSQL may walk through all partitions
                # that have none of them.
                oldest = min(at for _, at in found)
                filters["since"] = max(filters.get("since", oldest), oldest)
        return filters, errors


def _is_under_way(row: Delivery) -> bool:
    """Return whether an attempt is being made or is due."""
    if row.status == DeliveryStatus.PENDING:
        return row.next_attempt_at is not None and row.next_attempt_at <= timezone.now()
    return bool(row.status == DeliveryStatus.DELIVERING)


class DeliveryView(DeliveryPage):
    """One delivery with its attempts, the newest first, each with what was sent and received."""

    def get(self, request: HttpRequest, delivery_id: uuid.UUID) -> HttpResponse:
        row = self.own_delivery(delivery_id)
        attempts = list(
            DeliveryAttempt.objects.filter(delivery_id=row.pk)
            .select_related("delivery__event")
            .order_by("-number")[:MAX_ATTEMPTS_SHOWN]
        )
        blocks = exchange_blocks(row, attempts, for_tenant=True)
        # A retry of one that waits for another doesn't send it any earlier.
        earlier = self.earlier(row)
        is_retryable = (
            state_of(row) in DeliveryAction.RETRY.states
            and row.subscription.is_active
            and row.subscription.deleted_at is None
            and not row.event.is_erased
            and earlier is None
            and not (is_inbox(row.subscription) and state_of(row) == DeliveryState.PENDING)  # it is there already
        )
        holds_up = count_held_up(row)
        done, is_under_way = request.GET.get("done", ""), _is_under_way(row)
        if done == "retried" and not is_under_way:
            done = "tried"
        return self.page(
            "delivery.html",
            delivery=delivery_row(row),
            meaning=meanings.of_delivery(row, earlier, holds_up),
            next_attempt=format_time(planned) if (planned := meanings.next_attempt(row)) else "",
            earlier=delivery_row(earlier) if earlier else None,
            ordering_key=short(row.ordering_key or "", 255),
            is_skippable=self.is_skippable(row) and bool(holds_up),
            row=row,
            attempts=[{**attempt_row(one), "exchange": block} for one, block in zip(attempts, blocks, strict=True)],
            left_out=row.attempt_count > MAX_ATTEMPTS_SHOWN,
            is_retryable=is_retryable,
            has_endpoint=row.subscription.deleted_at is None and row.subscription.kind == DestinationKind.HTTP,
            done=DONE.get(done) if earlier is None else None,
            is_under_way=is_under_way,
        )


class RetryView(DeliveryPage):
    """Retrying a delivery now."""

    def post(self, request: HttpRequest, delivery_id: uuid.UUID) -> HttpResponse:
        row = self.own_delivery(delivery_id)
        if row.event.is_erased:
            raise NotAllowed("It can't be retried", texts.why_not_retryable(row))
        if not self.take_action(DeliveryAction.RETRY, row):
            raise NotAllowed("It can't be retried now", texts.why_not_retryable(self.own_delivery(delivery_id)))
        done = "again" if is_inbox(row.subscription) else "retried"
        return HttpResponseRedirect(f"{reverse('portal:delivery', args=[row.pk])}?done={done}")


class SkipView(DeliveryPage):
    """Skipping a delivery that later ones with its ordering key wait for."""

    is_only_for_changes = True

    def get(self, request: HttpRequest, delivery_id: uuid.UUID) -> HttpResponse:
        row = self.own_delivery(delivery_id)
        if not self.is_skippable(row):
            raise NotAllowed("It can't be skipped", texts.why_not_skippable(row))
        return self.page("skip.html", delivery=delivery_row(row), holds_up=count_held_up(row))

    def post(self, request: HttpRequest, delivery_id: uuid.UUID) -> HttpResponse:
        row = self.own_delivery(delivery_id)
        if not self.take_action(DeliveryAction.SKIP, row):
            raise NotAllowed("It can't be skipped", texts.why_not_skippable(self.own_delivery(delivery_id)))
        return HttpResponseRedirect(f"{reverse('portal:delivery', args=[row.pk])}?done=skipped")
