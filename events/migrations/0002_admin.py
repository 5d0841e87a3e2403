"""The permission that the admin's repair of events asks for."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("events", "0001_initial")]

    operations = [
        migrations.AlterModelOptions(
            name="event",
            options={"permissions": [("reprocess_event", "Can give events in error a new fan-out")]},
        ),
    ]
