"""Room on the pages of rollups, which Django can't declare."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("webhooks", "0002_partitions"),
    ]

    operations = [
        # A minute's row is updated by each batch of results: on pages with room the new version needs no index entry.
        migrations.RunSQL(
            "ALTER TABLE webhooks_rollup SET (fillfactor = 50)", "ALTER TABLE webhooks_rollup RESET (fillfactor)"
        ),
    ]
