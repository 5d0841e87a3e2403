"""What the admin's lists and actions need: permissions, and indexes built without stopping writes."""

import django.contrib.postgres.indexes
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False  # CREATE INDEX CONCURRENTLY can't run in a transaction

    dependencies = [("webhooks", "0001_initial")]

    operations = [
        migrations.AlterModelOptions(
            name="delivery",
            options={
                "permissions": [("repair_delivery", "Can retry, replay, hold and resume deliveries")],
                "verbose_name_plural": "deliveries",
            },
        ),
        migrations.AlterModelOptions(
            name="subscription",
            options={"permissions": [("switch_subscription", "Can disable, enable and recover subscriptions")]},
        ),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("status__in", ["failed", "held", "cancelled"])),
                fields=["status", "id"],
                name="webhooks_delivery_troubled",
            ),
        ),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("status", "failed")), fields=["completed_at"], name="webhooks_delivery_failed_at"
            ),
        ),
        AddIndexConcurrently(
            model_name="subscription",
            index=django.contrib.postgres.indexes.HashIndex(fields=["url"], name="webhooks_sub_url"),
        ),
    ]
