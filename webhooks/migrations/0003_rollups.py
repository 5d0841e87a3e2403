"""Rollups and gauges, from which the console draws."""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("webhooks", "0002_partitions"),
    ]

    operations = [
        migrations.CreateModel(
            name="Gauge",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "step", "organization_id", "at", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "step",
                    models.PositiveSmallIntegerField(
                        help_text="In minutes; beyond 1, the highest values of the period."
                    ),
                ),
                ("organization_id", models.UUIDField()),
                ("at", models.DateTimeField()),
                ("due", models.BigIntegerField(help_text="Deliveries that could be sent now.", null=True)),
                ("retrying", models.BigIntegerField(help_text="Deliveries whose next attempt is later.", null=True)),
                (
                    "paused",
                    models.BigIntegerField(help_text="Due, but behind a circuit breaker or Retry-After.", null=True),
                ),
                (
                    "rate_limited",
                    models.BigIntegerField(help_text="Due, but behind the subscription's rate limit.", null=True),
                ),
                ("held", models.BigIntegerField(help_text="Held, mostly behind a disabled subscription.", null=True)),
                ("in_flight", models.BigIntegerField(null=True)),
                ("oldest_due_seconds", models.FloatField(null=True)),
                ("workers", models.IntegerField(help_text="Live workers; empty if Redis didn't say.", null=True)),
                (
                    "places",
                    models.IntegerField(
                        help_text="Requests that the live workers may have in flight together.", null=True
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["step", "at"], name="webhooks_gauge_at")],
            },
        ),
        migrations.CreateModel(
            name="Rollup",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "step",
                        "organization_id",
                        "subscription_id",
                        "at",
                        "outcome",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("step", models.PositiveSmallIntegerField(help_text="The length of the period in minutes.")),
                ("organization_id", models.UUIDField()),
                ("subscription_id", models.UUIDField()),
                ("at", models.DateTimeField(help_text="The beginning of the period.")),
                ("outcome", models.CharField(max_length=40)),
                ("attempts", models.BigIntegerField()),
                (
                    "settled",
                    models.BigIntegerField(default=0, help_text="Deliveries that were delivered or failed for good."),
                ),
                ("duration_ms", models.FloatField(default=0, help_text="The sum of the attempts' durations.")),
                (
                    "durations",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.IntegerField(),
                        help_text="Attempts by duration, in the buckets of `rollups`.",
                        size=None,
                    ),
                ),
                (
                    "latencies",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.IntegerField(),
                        help_text="Deliveries by the time from the event's acceptance to its receipt.",
                        size=None,
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["step", "at"], name="webhooks_rollup_at")],
            },
        ),
        # A minute's row is updated by each batch of results: on pages with room the new version needs no index entry.
        migrations.RunSQL(
            "ALTER TABLE webhooks_rollup SET (fillfactor = 50)", "ALTER TABLE webhooks_rollup RESET (fillfactor)"
        ),
    ]
