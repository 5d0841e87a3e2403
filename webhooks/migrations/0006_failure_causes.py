"""Indexes with the causes of failures, from which the console's home counts them without reading a row for each."""

from __future__ import annotations

from django.db import migrations, models

from core.partitions import AddIndexToPartitionsConcurrently


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("webhooks", "0005_inbox_type_indexes"),
    ]

    operations = [
        AddIndexToPartitionsConcurrently(
            model_name="delivery",
            index=models.Index(
                fields=["completed_at"],
                include=["organization", "last_error", "last_status_code"],
                condition=models.Q(status="failed"),
                name="webhooks_delivery_fail_causes",
            ),
        ),
        AddIndexToPartitionsConcurrently(
            model_name="delivery",
            index=models.Index(
                fields=["organization", "completed_at"],
                include=["last_error", "last_status_code"],
                condition=models.Q(status="failed"),
                name="webhooks_delivery_org_failed",
            ),
        ),
        AddIndexToPartitionsConcurrently(
            model_name="delivery",
            index=models.Index(
                fields=["organization", "created_at", "id"],
                include=["last_error", "last_status_code"],
                condition=models.Q(("status", "pending"), models.Q(("last_error", ""), _negated=True)),
                name="webhooks_delivery_retry_causes",
            ),
        ),
        AddIndexToPartitionsConcurrently(
            model_name="delivery",
            index=models.Index(
                fields=["last_error", "last_status_code", "id"],
                condition=models.Q(status="failed"),
                name="webhooks_delivery_outcome",
            ),
        ),
        # They had the same columns without the causes.
        migrations.RemoveIndex(model_name="delivery", name="webhooks_delivery_failed_at"),
        migrations.RemoveIndex(model_name="delivery", name="webhooks_delivery_retrying"),
    ]
