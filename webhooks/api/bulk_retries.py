"""What `POST /api/deliveries/retry` takes and returns."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request

from core.problems import Problem
from core.serializers import StrictChoiceField, StrictSerializer
from orgs import audit
from orgs.authentication import caller_of
from webhooks.api import descriptions
from webhooks.models import BulkRun
from webhooks.upkeep import replay

EXAMPLE = {"subscription_id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91", "since": "2026-01-31T12:00:00Z"}
MAX_IDS = 1000
MAX_RUNNING = 20  # for one organization: the runs take turns
# The members by the names that `webhooks.delivery_filters` has for them.
_FILTERS = {
    "delivery_ids": "deliveries",
    "event_id": "event",
    "subscription_id": "subscription",
    "status": "status",
    "since": "since",
    "until": "until",
}


class BulkRetrySerializer(StrictSerializer):
    """Which deliveries to retry; at least one member."""

    hints = {  # noqa: RUF012
        "event": "event_id", "subscription": "subscription_id", "state": "status", "ids": "delivery_ids",
    }  # fmt: skip

    delivery_ids = serializers.ListField(
        child=serializers.UUIDField(), required=False, min_length=1, max_length=MAX_IDS, help_text="These deliveries."
    )
    event_id = serializers.UUIDField(required=False, help_text="Deliveries of this event.")
    subscription_id = serializers.UUIDField(required=False, help_text="Deliveries to this subscription.")
    status = StrictChoiceField(
        choices=list(replay.STATES),
        required=False,
        help_text="Deliveries with this status. Without it, `failed` and `retrying`.",
    )
    since = serializers.DateTimeField(required=False, help_text="Deliveries created at this time or later.")
    until = serializers.DateTimeField(required=False, help_text="Deliveries created before this time.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuse to retry everything by accident."""
        if not attrs:
            raise serializers.ValidationError(f"must name what to retry, by one or more of {', '.join(_FILTERS)}")
        return attrs


class RetryRunSerializer(serializers.Serializer[BulkRun]):
    """The progress of a retry of many deliveries."""

    id = serializers.UUIDField(help_text="The run's id, for `/api/retries/{retry_id}`.")
    status = serializers.ChoiceField(choices=BulkRun.State.values, source="state", help_text=descriptions.RUN_STATUS)
    seen = serializers.IntegerField(source="visited", help_text="Matching deliveries looked at so far.")
    queued = serializers.IntegerField(
        help_text="Deliveries that are due now, or held. Those of erased events are only seen."
    )
    held = serializers.IntegerField(help_text="Of those: held, because their subscription is disabled.")
    created_at = serializers.DateTimeField(help_text=descriptions.RUN_CREATED_AT)
    finished_at = serializers.DateTimeField(allow_null=True, help_text=descriptions.RUN_FINISHED_AT)


def start(request: Request, body: Mapping[str, Any]) -> BulkRun:
    """Begin what the body asks for, with its audit entry, and return the run."""
    serializer = BulkRetrySerializer(data=body)
    serializer.is_valid(raise_exception=True)
    caller = caller_of(request)
    asked = {_FILTERS[name]: value for name, value in serializer.validated_data.items()}
    running = BulkRun.objects.filter(organization_id=caller.organization_id, state=BulkRun.State.RUNNING)
    if running.count() >= MAX_RUNNING:
        raise Problem(
            "too_many_runs",
            f"{MAX_RUNNING} retries or recoveries of the organization are under way. Wait for one to end.",
            headers={"Retry-After": "10"},
        )
    filters = {**asked, "org": caller.organization_id}
    with transaction.atomic():
        run, is_new = replay.start_in_background(
            filters,
            caller.organization_id,
            kind=BulkRun.Kind.RETRY,
            actor=caller.actor,
            total=None,
            asked=[str(caller.organization_id), asked],
            seen_at=timezone.now(),
        )
        if is_new:
            named = {name: value for name, value in run.filters.items() if name != "deliveries"}
            audit.record_for_caller(request, "delivery.retry", run.id, {"run": str(run.id), "filters": named})
    return run


def own_run(organization_id: uuid.UUID, run_id: uuid.UUID) -> BulkRun | None:
    """Return a retry of many deliveries of the organization."""
    return BulkRun.objects.filter(pk=run_id, organization_id=organization_id, kind=BulkRun.Kind.RETRY).first()
