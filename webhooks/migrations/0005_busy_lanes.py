"""Whether a lane's last claim left something behind: such lanes are sent by a process of their own."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("webhooks", "0004_by_status")]

    operations = [
        migrations.AddField(
            model_name="lane",
            name="is_busy",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="The last claim took all that it might, so more may be due.",
            ),
        ),
    ]
