"""TRUNCATE is refused for the audit log as well: its privilege can be granted without the table."""

from django.db import migrations

REFUSE = """
CREATE TRIGGER orgs_auditentry_no_truncate BEFORE TRUNCATE ON orgs_auditentry
FOR EACH STATEMENT EXECUTE FUNCTION orgs_auditentry_refuse();
"""
ALLOW = "DROP TRIGGER orgs_auditentry_no_truncate ON orgs_auditentry;"


class Migration(migrations.Migration):
    dependencies = [("orgs", "0002_staff")]

    operations = [migrations.RunSQL(REFUSE, ALLOW)]
