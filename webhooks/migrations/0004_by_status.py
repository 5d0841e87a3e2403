"""One index for the lists by state, in the place of the one for failed and held; built without stopping writes."""

from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False  # CREATE INDEX CONCURRENTLY can't run in a transaction

    dependencies = [("webhooks", "0003_undelivered")]

    operations = [
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("status__in", ["pending", "held", "failed", "cancelled"])),
                fields=["organization", "status", "created_at", "id"],
                name="webhooks_delivery_by_status",
            ),
        ),
        # Only now, so that the lists of failed and held have an index at every moment.
        RemoveIndexConcurrently(model_name="delivery", name="webhooks_delivery_stopped"),
    ]
