"""The figures of the console's charts."""

from __future__ import annotations

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models


class Rollup(models.Model):
    """How many attempts of one subscription had one outcome in a period, and how long they took.

    `NO_ID` as the subscription sums up an organization, and as the organization, too, everything.  `rollups` says
    who writes which rows, and what the numbers mean.
    """

    pk = models.CompositePrimaryKey("step", "organization_id", "subscription_id", "at", "outcome")
    step = models.PositiveSmallIntegerField(help_text="The length of the period in minutes.")
    organization_id = models.UUIDField()
    subscription_id = models.UUIDField()
    at = models.DateTimeField(help_text="The beginning of the period.")
    outcome = models.CharField(max_length=40)
    attempts = models.BigIntegerField()
    settled = models.BigIntegerField(default=0, help_text="Deliveries that were delivered or failed for good.")
    duration_ms = models.FloatField(default=0, help_text="The sum of the attempts' durations.")
    durations = ArrayField(models.IntegerField(), help_text="Attempts by duration, in the buckets of `rollups`.")
    latencies = ArrayField(
        models.IntegerField(), help_text="Deliveries by the time from the event's acceptance to its receipt."
    )

    class Meta:
        indexes: ClassVar = [models.Index(fields=["step", "at"], name="webhooks_rollup_at")]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.outcome}"


class Gauge(models.Model):
    """What waited and what worked at one time: of an organization, or with `NO_ID`, of all.

    A period without a row of all was not observed: no worker swept.  An organization's row is left out where it would
    hold only zeros.
    """

    pk = models.CompositePrimaryKey("step", "organization_id", "at")
    step = models.PositiveSmallIntegerField(help_text="In minutes; beyond 1, the highest values of the period.")
    organization_id = models.UUIDField()
    at = models.DateTimeField()
    due = models.BigIntegerField(null=True, help_text="Deliveries that could be sent now.")
    retrying = models.BigIntegerField(null=True, help_text="Deliveries that failed and wait for another attempt.")
    paused = models.BigIntegerField(null=True, help_text="Due, but behind a circuit breaker or Retry-After.")
    rate_limited = models.BigIntegerField(null=True, help_text="Due, but behind the subscription's rate limit.")
    held = models.BigIntegerField(null=True, help_text="Held, mostly behind a disabled subscription.")
    in_flight = models.BigIntegerField(null=True)
    oldest_due_seconds = models.FloatField(null=True)
    workers = models.IntegerField(null=True, help_text="Live workers; empty if Redis didn't say.")
    places = models.IntegerField(null=True, help_text="Requests that the live workers may have in flight together.")

    class Meta:
        indexes: ClassVar = [models.Index(fields=["step", "at"], name="webhooks_gauge_at")]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M}"
