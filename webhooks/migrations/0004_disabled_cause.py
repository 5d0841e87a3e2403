"""A column for the cause for which a subscription is disabled, which also says what `stopped_with_host` said.

The column `stopped_with_host` stays in the database: processes of the version before use it until all are replaced.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("webhooks", "0003_rollups"),
    ]

    operations = [
        migrations.AddField(
            model_name="subscription",
            name="disabled_cause",
            field=models.CharField(
                blank=True,
                choices=[
                    ("by_request", "by request"),
                    ("by_operator", "by the operator"),
                    ("with_host", "together with its host"),
                    ("gone", "its endpoint is gone"),
                    ("always_failed", "every delivery failed"),
                ],
                db_default="",
                default="",
                editable=False,
                max_length=20,
            ),
        ),
        migrations.SeparateDatabaseAndState(
            state_operations=[migrations.RemoveField(model_name="subscription", name="stopped_with_host")]
        ),
    ]
