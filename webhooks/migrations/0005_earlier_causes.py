"""Gives subscriptions that are disabled their causes, and takes the names of members of staff out of their reasons.

Tenants read the reasons, in which earlier versions named who had disabled a subscription.  The audit log has the name.
"""

from django.db import migrations

# A name is Django's `username`.  Of a reason in an unknown form nothing is kept that could name somebody.
SET_CAUSES = r"""
WITH known AS (
    SELECT id, disabled_reason AS reason, CASE
        WHEN stopped_with_host THEN 'with_host'
        WHEN disabled_reason = 'Disabled by request.' OR disabled_reason LIKE 'Disabled by request: %' THEN 'by_request'
        WHEN disabled_reason = 'The endpoint returned 410 Gone.' THEN 'gone'
        WHEN disabled_reason ~ '^Every delivery failed for [0-9.]+ days\.$' THEN 'always_failed'
        ELSE 'by_operator'
    END AS cause
    FROM webhooks_subscription WHERE NOT is_active AND deleted_at IS NULL AND disabled_cause = ''
)
UPDATE webhooks_subscription s SET disabled_cause = known.cause, disabled_reason = CASE
    WHEN known.cause NOT IN ('by_operator', 'with_host') OR known.reason ~ '^(Disabled|Host \S+ stopped) by the operator: '
        THEN known.reason
    WHEN known.reason ~ '^(Disabled|Host \S+ stopped) by [\w.@+-]+: '
        THEN left(regexp_replace(known.reason, ' by [\w.@+-]+: ', ' by the operator: '), 500)
    WHEN known.cause = 'with_host' THEN 'Host stopped by the operator.'
    ELSE 'Disabled by the operator.'
END
FROM known WHERE known.id = s.id
"""


class Migration(migrations.Migration):
    dependencies = [
        ("webhooks", "0004_disabled_cause"),
    ]

    operations = [
        migrations.RunSQL(SET_CAUSES, migrations.RunSQL.noop),
    ]
