"""The types of what is in inboxes already, and the indexes that find them, while others write."""

from django.db import migrations, models

from core.partitions import AddIndexToPartitionsConcurrently

BACKFILL = """
UPDATE webhooks_delivery d SET inbox_type = e.type FROM webhooks_subscription s, events_event e
WHERE s.kind = 'inbox' AND d.subscription_id = s.id AND d.status IN ('pending', 'held') AND d.inbox_type IS NULL
  AND e.id = d.event_id
"""


def _index(name: str, *, fresh: bool) -> AddIndexToPartitionsConcurrently:
    return AddIndexToPartitionsConcurrently(
        model_name="delivery",
        index=models.Index(
            fields=["subscription", "inbox_type", "next_attempt_at"],
            condition=models.Q(status="pending", lease_id__isnull=fresh, inbox_type__isnull=False),
            name=name,
        ),
    )


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("webhooks", "0004_inbox_type"),
    ]

    operations = [
        migrations.RunSQL(BACKFILL, migrations.RunSQL.noop),
        _index("webhooks_delivery_type_again", fresh=False),
        _index("webhooks_delivery_type_fresh", fresh=True),
    ]
