from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("webhooks", "0003_rollups"),
    ]

    operations = [
        migrations.AddField(
            model_name="delivery",
            name="inbox_type",
            field=models.CharField(db_collation="C", editable=False, max_length=256, null=True),
        ),
    ]
