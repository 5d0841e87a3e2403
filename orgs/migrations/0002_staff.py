"""Least-privilege staff groups, and triggers that make the audit log append-only."""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# Django makes these permissions only after all migrations; a group that holds them needs them now.
SPECIAL = {
    ("orgs", "apikey", "revoke_apikey"): "Can revoke API keys",
    ("events", "event", "reprocess_event"): "Can give events in error a new fan-out",
    ("webhooks", "delivery", "manage_delivery"): "Can retry, replay, hold and resume deliveries",
    ("webhooks", "subscription", "switch_subscription"): "Can disable, enable and recover subscriptions",
}
READABLE = {
    "apikey": "API key",
    "auditentry": "audit entry",
    "deliveryattempt": "delivery attempt",
    "bulkrun": "bulk run",
    "eventtype": "event type",
}

VIEWER = [
    ("orgs", "organization", "view_organization"),
    ("orgs", "apikey", "view_apikey"),
    ("orgs", "auditentry", "view_auditentry"),
    ("events", "event", "view_event"),
    ("events", "eventtype", "view_eventtype"),
    ("webhooks", "subscription", "view_subscription"),
    ("webhooks", "delivery", "view_delivery"),
    ("webhooks", "deliveryattempt", "view_deliveryattempt"),
    ("webhooks", "bulkrun", "view_bulkrun"),
]
OPERATOR = [
    *VIEWER,
    ("events", "event", "reprocess_event"),
    ("webhooks", "delivery", "manage_delivery"),
    ("webhooks", "subscription", "switch_subscription"),
]
OWNER = [
    *OPERATOR,
    ("orgs", "organization", "add_organization"),
    ("orgs", "organization", "change_organization"),
    ("orgs", "apikey", "add_apikey"),
    ("orgs", "apikey", "change_apikey"),
    ("orgs", "apikey", "revoke_apikey"),
    ("events", "eventtype", "add_eventtype"),
    ("events", "eventtype", "change_eventtype"),
    ("webhooks", "subscription", "add_subscription"),
    ("webhooks", "subscription", "change_subscription"),
    ("webhooks", "subscription", "delete_subscription"),
    ("auth", "user", "view_user"),
    ("auth", "user", "add_user"),
    ("auth", "user", "change_user"),
    ("auth", "group", "view_group"),
]
GROUPS = {"viewer": VIEWER, "operator": OPERATOR, "owner": OWNER}


def make_groups(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
    """Make the three groups with their permissions."""
    group_model = apps.get_model("auth", "Group")
    permission_model = apps.get_model("auth", "Permission")
    content_type_model = apps.get_model("contenttypes", "ContentType")
    database = editor.connection.alias
    for name, wanted in GROUPS.items():
        permissions = []
        for app_label, model, codename in wanted:
            content_type, _ = content_type_model.objects.using(database).get_or_create(app_label=app_label, model=model)
            verb = codename.partition("_")[0]
            title = SPECIAL.get((app_label, model, codename), f"Can {verb} {READABLE.get(model, model)}")
            permission, _ = permission_model.objects.using(database).get_or_create(
                content_type=content_type, codename=codename, defaults={"name": title}
            )
            permissions.append(permission)
        group, _ = group_model.objects.using(database).get_or_create(name=name)
        group.permissions.add(*permissions)


def drop_groups(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
    """Remove the three groups; the permissions belong to Django."""
    group_model = apps.get_model("auth", "Group")
    group_model.objects.using(editor.connection.alias).filter(name__in=GROUPS).delete()


# A statement that would change or remove entries fails as a whole, even one that finds no row.
REFUSE_CHANGES = """
CREATE FUNCTION orgs_auditentry_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER orgs_auditentry_append_only BEFORE UPDATE OR DELETE ON orgs_auditentry
FOR EACH STATEMENT EXECUTE FUNCTION orgs_auditentry_refuse();
-- A role can have the privilege to TRUNCATE without owning the table.
CREATE TRIGGER orgs_auditentry_no_truncate BEFORE TRUNCATE ON orgs_auditentry
FOR EACH STATEMENT EXECUTE FUNCTION orgs_auditentry_refuse();
"""
ALLOW_CHANGES = """
DROP TRIGGER orgs_auditentry_no_truncate ON orgs_auditentry;
DROP TRIGGER orgs_auditentry_append_only ON orgs_auditentry;
DROP FUNCTION orgs_auditentry_refuse();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("orgs", "0001_initial"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    operations = [
        migrations.RunPython(make_groups, drop_groups),
        migrations.RunSQL(REFUSE_CHANGES, ALLOW_CHANGES),
    ]
