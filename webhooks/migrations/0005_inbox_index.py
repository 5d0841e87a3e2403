"""The index of what was fetched from an inbox, built while others write."""

from django.db import migrations, models

from core.partitions import AddIndexToPartitionsConcurrently


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("webhooks", "0004_inbox"),
    ]

    operations = [
        AddIndexToPartitionsConcurrently(
            "delivery",
            models.Index(
                condition=models.Q(("lease_id__isnull", False), ("status", "pending")),
                fields=["subscription", "next_attempt_at"],
                name="webhooks_delivery_fetched",
            ),
        ),
    ]
