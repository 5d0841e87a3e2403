"""The index behind the list of undelivered events, built without stopping writes."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False  # CREATE INDEX CONCURRENTLY can't run in a transaction

    dependencies = [("webhooks", "0002_admin")]

    operations = [
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("status__in", ["pending", "delivering", "held", "failed"])),
                fields=["organization", "event"],
                name="webhooks_delivery_undelivered",
            ),
        ),
    ]
