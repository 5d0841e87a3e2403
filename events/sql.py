"""Statements that the ORM can't say.  Times are the database's.

Where an index is searched by time it is `statement_timestamp()`: `clock_timestamp()` may change from row to row,
so no index can be entered by it, and a search would read what is due later, too.
"""

from orgs import keys

_INSERT_EVENT = """
INSERT INTO events_event (id, organization_id, type, data, status, failed_attempts, last_error, due_at, created_at)
SELECT %(id)s, %(organization_id)s, %(type)s, %(data)s, 'accepted', 0, '', t, t FROM clock_timestamp() AS t
"""

# One statement, so that no crash can separate the memory of the dedup id from the event.  A key that is
# held by an uncommitted transaction is waited for; one whose window has ended is taken over.
_INSERT_EVENT_ONCE = """
WITH claimed AS (
    INSERT INTO events_dedupkey AS k (organization_id, dedup_id, event_id, fingerprint, expires_at)
    SELECT %(organization_id)s, %(dedup_id)s, %(id)s, %(fingerprint)s, clock_timestamp() + %(window)s {condition}
    ON CONFLICT (organization_id, dedup_id) DO UPDATE
        SET event_id = EXCLUDED.event_id, fingerprint = EXCLUDED.fingerprint, expires_at = EXCLUDED.expires_at
        WHERE k.expires_at <= clock_timestamp()
    RETURNING event_id
)
INSERT INTO events_event (
    id, organization_id, type, data, dedup_id, status, failed_attempts, last_error, due_at, created_at
)
SELECT claimed.event_id, %(organization_id)s, %(type)s, %(data)s, %(dedup_id)s, 'accepted', 0, '', t, t
FROM claimed, clock_timestamp() AS t
"""
# By whether the dedup id has to be new, and whether the key has to hold.
INSERT_EVENT = {
    (False, False): _INSERT_EVENT,
    (False, True): f"{_INSERT_EVENT} WHERE {keys.HOLDS}",
    (True, False): _INSERT_EVENT_ONCE.format(condition=""),
    (True, True): _INSERT_EVENT_ONCE.format(condition=f"WHERE {keys.HOLDS}"),
}

FIND_DEDUP_KEY = "SELECT event_id, fingerprint FROM events_dedupkey WHERE organization_id = %s AND dedup_id = %s"

# The order of the keys keeps two batches from waiting for each other.
INSERT_BATCH = """
WITH item AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(types)s::text[], %(data)s::text[], %(dedup_ids)s::text[], %(fingerprints)s::bytea[]
    ) AS t(id, type, data, dedup_id, fingerprint)
), claimed AS (
    INSERT INTO events_dedupkey AS k (organization_id, dedup_id, event_id, fingerprint, expires_at)
    SELECT %(organization_id)s, dedup_id, id, fingerprint, clock_timestamp() + %(window)s
    FROM item WHERE dedup_id IS NOT NULL ORDER BY dedup_id
    ON CONFLICT (organization_id, dedup_id) DO UPDATE
        SET event_id = EXCLUDED.event_id, fingerprint = EXCLUDED.fingerprint, expires_at = EXCLUDED.expires_at
        WHERE k.expires_at <= clock_timestamp()
    RETURNING event_id
)
INSERT INTO events_event (
    id, organization_id, type, data, dedup_id, status, failed_attempts, last_error, due_at, created_at
)
SELECT item.id, %(organization_id)s, item.type, item.data, item.dedup_id, 'accepted', 0, '', t, t
FROM item, clock_timestamp() AS t
WHERE item.dedup_id IS NULL OR item.id IN (SELECT event_id FROM claimed)
"""

FIND_DEDUP_KEYS = """
SELECT dedup_id, event_id, fingerprint FROM events_dedupkey WHERE organization_id = %s AND dedup_id = ANY(%s)
"""

# Counting stops at the bound: nobody needs to know how far over it is, and no count gets slow.
COUNT_ACCEPTED = """
SELECT count(*) FROM (SELECT 1 FROM events_event WHERE status = 'accepted' LIMIT %s) AS waiting
"""

OLDEST_ACCEPTED = """
SELECT extract(epoch FROM clock_timestamp() - min(due_at)) FROM events_event WHERE status = 'accepted'
"""

CLAIM_ACCEPTED = """
SELECT id, organization_id, type FROM events_event
WHERE status = 'accepted' AND due_at <= statement_timestamp()
ORDER BY due_at LIMIT %s
FOR UPDATE SKIP LOCKED
"""

MARK_PROCESSED = """
UPDATE events_event SET status = 'processed', processed_at = clock_timestamp(), last_error = ''
WHERE id = ANY(%s::uuid[])
"""

# Parameters: max_attempts, reason, id.
MARK_FAILED = """
UPDATE events_event SET
    failed_attempts = failed_attempts + 1,
    last_error = %(reason)s,
    status = CASE WHEN failed_attempts + 1 >= %(max_attempts)s THEN 'error' ELSE 'accepted' END,
    due_at = clock_timestamp() + make_interval(secs => least(60, power(2, failed_attempts)))
WHERE id = %(id)s AND status = 'accepted'
RETURNING status
"""

# By the place of the locked rows, because the planner might else read the whole table for the join.
DELETE_EXPIRED_DEDUP_KEYS = """
DELETE FROM events_dedupkey WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM events_dedupkey
    WHERE expires_at <= statement_timestamp() ORDER BY expires_at LIMIT %s
    FOR UPDATE SKIP LOCKED
))
"""
