"""Inboxes: subscriptions whose deliveries are fetched."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("events", "0001_initial"),
        ("orgs", "0003_inbox"),
        ("webhooks", "0003_rollups"),
    ]

    operations = [
        migrations.AddField(
            model_name="subscription",
            name="inbox",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                editable=False,
                help_text="The inbox's name, if it is one.",
                max_length=64,
            ),
        ),
        migrations.AddField(
            model_name="subscription",
            name="kind",
            field=models.CharField(
                choices=[("http", "Http"), ("inbox", "Inbox")],
                db_default="http",
                default="http",
                editable=False,
                max_length=10,
            ),
        ),
        migrations.AddField(
            model_name="subscriptionqueue",
            name="is_fetched",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="An inbox: nothing is sent, so `next_due_at` is always empty.",
            ),
        ),
        migrations.AddConstraint(
            model_name="subscription",
            constraint=models.UniqueConstraint(
                condition=models.Q(("deleted_at", None), ("kind", "inbox")),
                fields=("organization", "inbox"),
                name="webhooks_sub_inbox",
            ),
        ),
    ]
