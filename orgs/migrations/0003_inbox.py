"""The scope of inboxes."""

import django.contrib.postgres.fields
from django.db import migrations, models

import orgs.models


class Migration(migrations.Migration):
    dependencies = [
        ("orgs", "0002_staff"),
    ]

    operations = [
        migrations.AlterField(
            model_name="apikey",
            name="scopes",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(
                    choices=[
                        ("events:write", "Events Write"),
                        ("events:read", "Events Read"),
                        ("subscriptions:manage", "Subscriptions Manage"),
                        ("deliveries:read", "Deliveries Read"),
                        ("deliveries:retry", "Deliveries Retry"),
                        ("inbox:consume", "Inbox Consume"),
                        ("keys:manage", "Keys Manage"),
                    ],
                    max_length=40,
                ),
                default=orgs.models.all_scopes,
                size=None,
            ),
        ),
    ]
