"""Let the staff groups see portal sessions, and operators end them."""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# Django makes these permissions only after all migrations; a group that holds them needs them now.
VIEW = ("view_portalsession", "Can view portal session")
END = ("end_portalsession", "Can end portal sessions")
GROUPS = {"viewer": [VIEW], "operator": [VIEW, END], "owner": [VIEW, END]}


def add_permissions(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
    """Give the three groups their permissions."""
    database = editor.connection.alias
    content_type_model = apps.get_model("contenttypes", "ContentType")
    permissions = apps.get_model("auth", "Permission").objects.using(database)
    content_type, _ = content_type_model.objects.using(database).get_or_create(
        app_label="portal", model="portalsession"
    )
    for group in apps.get_model("auth", "Group").objects.using(database).filter(name__in=GROUPS):
        for codename, name in GROUPS[group.name]:
            permission, _ = permissions.get_or_create(
                content_type=content_type, codename=codename, defaults={"name": name}
            )
            group.permissions.add(permission)


class Migration(migrations.Migration):
    dependencies = [
        ("portal", "0001_initial"),
        ("orgs", "0002_staff"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="portalsession",
            options={"permissions": [END], "verbose_name": "portal session"},
        ),
        migrations.RunPython(add_permissions, migrations.RunPython.noop),
    ]
