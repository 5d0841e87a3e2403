"""Statements that the ORM can't say.  Times are the database's; events/sql.py says which clock and why."""

# --- Fan-out ------------------------------------------------------------------------------------

# How many events each running fan-out holds is told as a shared advisory lock: the second key is the
# number.  It is true at every moment, because it goes with the transaction, however that ends.
ANNOUNCE_FAN_OUT = "SELECT pg_advisory_xact_lock_shared(71001, %s)"
COUNT_IN_FAN_OUT = """
SELECT coalesce(sum(objid::bigint), 0) FROM pg_locks
WHERE locktype = 'advisory' AND classid = 71001 AND objsubid = 2 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

FIND_SUBSCRIPTIONS = """
SELECT organization_id, id, event_types, is_active FROM webhooks_subscription
WHERE organization_id = ANY(%s::uuid[]) AND deleted_at IS NULL
ORDER BY id
"""

# A conflict means that an earlier fan-out of the same event already made the delivery.
INSERT_DELIVERIES = """
INSERT INTO webhooks_delivery (
    id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
    tries_used, attempt_count, last_error, created_at
)
SELECT id, organization_id, event_id, subscription_id, status, t + make_interval(secs => %(delay)s), 'schedule',
       0, 0, '', t
FROM unnest(%(ids)s::uuid[], %(organizations)s::uuid[], %(events)s::uuid[], %(subscriptions)s::uuid[],
            %(statuses)s::text[]) AS d(id, organization_id, event_id, subscription_id, status),
     clock_timestamp() AS t
ON CONFLICT (event_id, subscription_id) DO NOTHING
"""

# --- Lanes --------------------------------------------------------------------------------------

# Locking in the order of the ids keeps two workers from waiting for each other.
LOCK_LANES = """
SELECT l.subscription_id, l.is_open, s.deleted_at IS NOT NULL, l.window_size, l.failures_in_row, l.circuit_opened,
       greatest(0, extract(epoch FROM l.paused_until - clock_timestamp()))::float8,
       extract(epoch FROM clock_timestamp() - l.failing_since)::float8,
       coalesce(s.max_in_flight, %(most)s), l.in_flight >= least(l.window_size, coalesce(s.max_in_flight, %(most)s))
FROM webhooks_lane l JOIN webhooks_subscription s ON s.id = l.subscription_id
WHERE l.subscription_id = ANY(%(ids)s::uuid[]) ORDER BY l.subscription_id FOR UPDATE OF l
"""

# A lane that was closed since the fan-out looked has to put the new deliveries on hold.
# The transaction's time is before any that it gave a delivery, however long the lock was waited for.
ANNOUNCE_DUE = """
UPDATE webhooks_lane
SET next_due_at = least(next_due_at, now() + make_interval(secs => %(delay)s)),
    needs_resync = needs_resync OR NOT is_open
WHERE subscription_id IN (
    SELECT subscription_id FROM webhooks_lane WHERE subscription_id = ANY(%(ids)s::uuid[])
    ORDER BY subscription_id FOR UPDATE
)
"""

# The other way round: deliveries were made on hold for a lane that was opened meanwhile.
ANNOUNCE_HELD = """
UPDATE webhooks_lane SET needs_resync = needs_resync OR is_open
WHERE subscription_id IN (
    SELECT subscription_id FROM webhooks_lane WHERE subscription_id = ANY(%s::uuid[])
    ORDER BY subscription_id FOR UPDATE
)
"""

# --- Claim --------------------------------------------------------------------------------------

# Lanes take turns: first every organisation's longest-unserved lane, then every second one, and so on.
CLAIM_LANES = """
WITH due AS (
    SELECT l.subscription_id, l.last_served_at,
           row_number() OVER (PARTITION BY l.organization_id ORDER BY l.last_served_at) AS turn
    FROM webhooks_lane l JOIN webhooks_subscription s ON s.id = l.subscription_id
    WHERE l.is_open AND l.next_due_at <= statement_timestamp()
      AND (l.paused_until IS NULL OR l.paused_until <= clock_timestamp())
      AND l.in_flight < least(l.window_size, coalesce(s.max_in_flight, %(most)s))
      AND l.is_busy = ANY(%(busy)s)
    ORDER BY turn, l.last_served_at LIMIT %(lanes)s
)
SELECT l.subscription_id, least(l.window_size, coalesce(s.max_in_flight, %(most)s)) - l.in_flight,
       s.deliveries_per_second, extract(epoch FROM l.rate_reserved_until)::float8,
       extract(epoch FROM clock_timestamp())::float8,
       s.url, s.encrypted_headers, s.encrypted_secret,
       CASE WHEN s.previous_secret_expires_at > clock_timestamp() THEN s.encrypted_previous_secret ELSE '' END,
       (SELECT count(*) FROM due)
FROM due JOIN webhooks_lane l ON l.subscription_id = due.subscription_id
JOIN webhooks_subscription s ON s.id = l.subscription_id
WHERE l.is_open AND l.is_busy = ANY(%(busy)s)
  AND l.in_flight < least(l.window_size, coalesce(s.max_in_flight, %(most)s))
  AND (l.paused_until IS NULL OR l.paused_until <= clock_timestamp())
ORDER BY due.turn, due.last_served_at
FOR UPDATE OF l SKIP LOCKED
"""

# Whether a claim that got nothing met only locks, which others hold for milliseconds.
ANY_CLAIMABLE = """
SELECT EXISTS (
    SELECT 1 FROM webhooks_lane l JOIN webhooks_subscription s ON s.id = l.subscription_id
    WHERE l.is_open AND l.next_due_at <= statement_timestamp()
      AND (l.paused_until IS NULL OR l.paused_until <= clock_timestamp())
      AND l.in_flight < least(l.window_size, coalesce(s.max_in_flight, %(most)s)) AND l.is_busy = ANY(%(busy)s)
)
"""

# The planner takes a LIMIT that it doesn't know for a tenth of the index, and would join that many rows by
# reading both tables from end to end; an array it takes for ten.
CLAIM_DELIVERIES = """
WITH picked AS (
    SELECT d.id FROM unnest(%(lanes)s::uuid[], %(quotas)s::int[]) AS q(subscription_id, quota)
    CROSS JOIN LATERAL (
        SELECT id FROM webhooks_delivery
        WHERE subscription_id = q.subscription_id AND status = 'pending' AND next_attempt_at <= statement_timestamp()
        ORDER BY next_attempt_at LIMIT q.quota
        FOR UPDATE SKIP LOCKED
    ) AS d
)
UPDATE webhooks_delivery d
SET status = 'delivering', lease_id = %(lease)s,
    lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_seconds)s)
FROM events_event e
WHERE d.id = ANY (ARRAY (SELECT id FROM picked)) AND e.id = d.event_id
RETURNING d.id, d.subscription_id, d.tries_used, d.cause, e.id, e.type, e.created_at, e.data
"""

# A lane that gave all that was asked may have more; only one that ran dry needs a look at the index.
SERVE_LANES = """
UPDATE webhooks_lane l
SET in_flight = l.in_flight + v.taken,
    last_served_at = clock_timestamp(),
    is_busy = v.taken >= v.quota,
    rate_reserved_until = to_timestamp(v.reserved_until),
    next_due_at = CASE
        WHEN v.wait_until IS NOT NULL THEN to_timestamp(v.wait_until)
        WHEN v.taken >= v.quota THEN l.next_due_at
        ELSE (SELECT min(d.next_attempt_at) FROM webhooks_delivery d
              WHERE d.subscription_id = l.subscription_id AND d.status = 'pending')
    END
FROM unnest(%(lanes)s::uuid[], %(taken)s::int[], %(quotas)s::int[], %(reserved)s::float8[], %(waits)s::float8[])
     AS v(subscription_id, taken, quota, reserved_until, wait_until)
WHERE l.subscription_id = v.subscription_id
"""

# --- Record -------------------------------------------------------------------------------------

# Every attempt is kept.  The delivery only changes while the lease is still the worker's own.
RECORD = """
WITH result AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(leases)s::uuid[], %(statuses)s::text[], %(delays)s::float8[], %(codes)s::int[],
        %(errors)s::text[], %(details)s::text[], %(bodies)s::text[], %(started)s::float8[], %(durations)s::float8[],
        %(causes)s::text[]
    ) AS r(delivery_id, lease_id, status, delay, code, error, detail, body, started, duration, cause)
), changed AS (
    UPDATE webhooks_delivery d SET
        attempt_count = d.attempt_count + 1,
        tries_used = d.tries_used + own.one,
        status = CASE own.one WHEN 1 THEN r.status ELSE d.status END,
        next_attempt_at = CASE own.one WHEN 1 THEN clock_timestamp() + make_interval(secs => r.delay)
                          ELSE d.next_attempt_at END,
        completed_at = CASE WHEN own.one = 1 AND r.status IN ('delivered', 'failed', 'cancelled')
                       THEN clock_timestamp() ELSE d.completed_at END,
        cause = CASE own.one WHEN 1 THEN 'schedule' ELSE d.cause END,
        lease_id = CASE own.one WHEN 1 THEN NULL ELSE d.lease_id END,
        lease_expires_at = CASE own.one WHEN 1 THEN NULL ELSE d.lease_expires_at END,
        last_status_code = r.code,
        last_error = r.error
    FROM result r, webhooks_delivery b,
         LATERAL (SELECT CASE WHEN b.status = 'delivering' AND b.lease_id = r.lease_id THEN 1 ELSE 0 END AS one) AS own
    WHERE d.id = r.delivery_id AND b.id = d.id
    RETURNING d.id, d.subscription_id, d.attempt_count, own.one AS own, d.status, d.next_attempt_at
), kept AS (
    INSERT INTO webhooks_deliveryattempt (
        delivery_id, number, cause, started_at, duration_ms, status_code, error, error_detail, response_body
    )
    SELECT r.delivery_id, changed.attempt_count, r.cause, to_timestamp(r.started), r.duration, r.code, r.error,
           r.detail, r.body
    FROM result r JOIN changed ON changed.id = r.delivery_id
)
SELECT id, subscription_id, own, extract(epoch FROM next_attempt_at)::float8, status FROM changed
"""

SETTLE_LANES = """
UPDATE webhooks_lane l SET
    in_flight = l.in_flight - v.settled,
    window_size = v.win,
    failures_in_row = v.failures,
    circuit_opened = v.opened,
    paused_until = CASE WHEN v.pause > 0 THEN clock_timestamp() + make_interval(secs => v.pause) END,
    failing_since = CASE WHEN v.failing THEN coalesce(l.failing_since, clock_timestamp()) END,
    last_success_at = CASE WHEN v.succeeded THEN clock_timestamp() ELSE l.last_success_at END,
    next_due_at = least(l.next_due_at, to_timestamp(v.due))
FROM unnest(%(lanes)s::uuid[], %(settled)s::int[], %(windows)s::int[], %(failures)s::int[], %(opened)s::int[],
            %(pauses)s::float8[], %(failing)s::bool[], %(succeeded)s::bool[], %(due)s::float8[])
     AS v(subscription_id, settled, win, failures, opened, pause, failing, succeeded, due)
WHERE l.subscription_id = v.subscription_id
"""

# --- Leases that end without a result -------------------------------------------------------------

FIND_EXPIRED = """
SELECT id, subscription_id FROM webhooks_delivery
WHERE status = 'delivering' AND lease_expires_at <= statement_timestamp() LIMIT %s
"""
FIND_LEASED = (
    "SELECT id, subscription_id FROM webhooks_delivery WHERE status = 'delivering' AND lease_id = ANY(%s::uuid[])"
)

# Parameters: ids, the leases that may be ended (NULL: those that expired).
RETURN_LEASED = """
UPDATE webhooks_delivery d SET
    status = CASE WHEN s.deleted_at IS NOT NULL THEN 'cancelled' WHEN s.is_active THEN 'pending' ELSE 'held' END,
    next_attempt_at = clock_timestamp(), lease_id = NULL, lease_expires_at = NULL,
    completed_at = CASE WHEN s.deleted_at IS NOT NULL THEN clock_timestamp() END
FROM webhooks_subscription s
WHERE s.id = d.subscription_id AND d.id = ANY(%(ids)s::uuid[]) AND d.status = 'delivering'
  AND CASE WHEN %(leases)s::uuid[] IS NULL THEN d.lease_expires_at <= clock_timestamp()
           ELSE d.lease_id = ANY(%(leases)s::uuid[]) END
RETURNING d.id, d.subscription_id
"""

# A delivery that loses its worker again and again may be what kills it: after the first loss each further
# one in a row waits twice as long, and after the last one allowed it is given up.
NOTE_LOST_ATTEMPTS = """
WITH lost AS (
    UPDATE webhooks_delivery SET attempt_count = attempt_count + 1, last_error = 'worker_lost', last_status_code = NULL
    WHERE id = ANY(%s::uuid[]) RETURNING id, attempt_count, cause
), noted AS (
    INSERT INTO webhooks_deliveryattempt (
        delivery_id, number, cause, started_at, duration_ms, error, error_detail, response_body
    )
    SELECT id, attempt_count, cause, clock_timestamp(), 0, 'worker_lost',
           'The worker that had claimed this delivery stopped; whether the request was sent is not known.', ''
    FROM lost
)
SELECT lost.id, (
    SELECT count(*) FROM webhooks_deliveryattempt a WHERE a.delivery_id = lost.id AND a.number > coalesce((
        SELECT max(b.number) FROM webhooks_deliveryattempt b
        WHERE b.delivery_id = lost.id AND b.error <> 'worker_lost'
    ), 0)
) FROM lost
"""

# Parameters: ids and, for each, how many workers it lost before this one.
SLOW_DOWN_LOST = """
UPDATE webhooks_delivery d SET
    next_attempt_at = clock_timestamp() + make_interval(secs => least(3600, power(2, v.before))),
    status = CASE WHEN d.status = 'pending' AND v.before + 1 >= %(most)s THEN 'failed' ELSE d.status END,
    completed_at = CASE WHEN d.status = 'pending' AND v.before + 1 >= %(most)s THEN clock_timestamp()
                   ELSE d.completed_at END
FROM unnest(%(ids)s::uuid[], %(before)s::int[]) AS v(id, before)
WHERE d.id = v.id AND d.status IN ('pending', 'held')
"""

RETURN_TO_LANES = """
UPDATE webhooks_lane l SET in_flight = l.in_flight - v.returned, next_due_at = least(l.next_due_at, clock_timestamp())
FROM unnest(%(lanes)s::uuid[], %(returned)s::int[]) AS v(subscription_id, returned)
WHERE l.subscription_id = v.subscription_id
"""

# --- Repair of what can only go wrong by hand ------------------------------------------------------

FIND_FORGOTTEN_LANES = """
SELECT l.subscription_id FROM webhooks_lane l
WHERE l.is_open AND (
    l.next_due_at IS NULL OR l.next_due_at > clock_timestamp()
) AND EXISTS (
    SELECT 1 FROM webhooks_delivery d WHERE d.subscription_id = l.subscription_id AND d.status = 'pending'
      AND d.next_attempt_at < coalesce(l.next_due_at, 'infinity') AND d.next_attempt_at <= statement_timestamp()
)
"""

# More or fewer in flight than are claimed: the lane would stay shut, or let too many through.
FIND_MISCOUNTED_LANES = """
SELECT l.subscription_id FROM webhooks_lane l LEFT JOIN (
    SELECT subscription_id, count(*) AS claimed FROM webhooks_delivery WHERE status = 'delivering' GROUP BY 1
) AS c ON c.subscription_id = l.subscription_id
WHERE l.in_flight <> coalesce(c.claimed, 0)
"""
RECOUNT_LANES = """
UPDATE webhooks_lane l SET in_flight = c.claimed
FROM (
    SELECT one.id, (
        SELECT count(*) FROM webhooks_delivery d WHERE d.subscription_id = one.id AND d.status = 'delivering'
    ) AS claimed FROM unnest(%s::uuid[]) AS one(id)
) AS c
WHERE l.subscription_id = c.id AND l.in_flight <> c.claimed
"""

# --- Figures ------------------------------------------------------------------------------------

COUNT_DUE = """
SELECT count(*) FROM (
    SELECT 1 FROM webhooks_lane l JOIN webhooks_delivery d ON d.subscription_id = l.subscription_id
    WHERE l.is_open AND l.next_due_at <= statement_timestamp()
      AND d.status = 'pending' AND d.next_attempt_at <= statement_timestamp()
    LIMIT %s
) AS waiting
"""
COUNT_DELIVERING = "SELECT coalesce(sum(in_flight), 0) FROM webhooks_lane WHERE in_flight > 0"
OLDEST_DUE = """
SELECT extract(epoch FROM clock_timestamp() - min(next_due_at)) FROM webhooks_lane
WHERE is_open AND next_due_at <= statement_timestamp()
"""

# --- Repair by hand -------------------------------------------------------------------------------

_REPAIR = """
UPDATE webhooks_delivery d SET {changes}
FROM webhooks_subscription s
WHERE d.id = ANY(%(ids)s::uuid[]) AND d.status = ANY(%(states)s::text[]) AND s.id = d.subscription_id
  AND s.deleted_at IS NULL AND {condition}
RETURNING d.subscription_id
"""
REPAIR = {
    "retry": _REPAIR.format(
        changes="status = 'pending', next_attempt_at = clock_timestamp(), cause = 'manual', completed_at = NULL,"
        " tries_used = CASE d.status WHEN 'pending' THEN d.tries_used ELSE %(last_try)s END",
        condition="s.is_active",
    ),
    "replay": _REPAIR.format(
        changes="status = 'pending', next_attempt_at = clock_timestamp(), cause = 'replay', completed_at = NULL,"
        " tries_used = 0",
        condition="s.is_active",
    ),
    "hold": _REPAIR.format(changes="status = 'held'", condition="true"),
    "resume": _REPAIR.format(
        changes="status = 'pending', next_attempt_at = clock_timestamp()", condition="s.is_active"
    ),
}

# Recovery: what failed gets a fresh schedule; on hold, like everything else, for a disabled subscription.
REQUEUE_FAILED = """
UPDATE webhooks_delivery d SET
    status = CASE WHEN l.is_open THEN 'pending' ELSE 'held' END, next_attempt_at = clock_timestamp(),
    cause = 'replay', completed_at = NULL, tries_used = 0
FROM webhooks_lane l
WHERE d.event_id = ANY(%(events)s::uuid[]) AND d.subscription_id = %(subscription)s AND d.status = 'failed'
  AND l.subscription_id = d.subscription_id
"""

# --- Retention ------------------------------------------------------------------------------------

UNSETTLED = ("pending", "delivering", "held")

# Organisations with anything old enough; the list index answers with one look each.
FIND_ORGANIZATIONS_WITH_EXPIRED = """
SELECT o.id FROM orgs_organization o
CROSS JOIN LATERAL (
    SELECT 1 FROM events_event e WHERE e.organization_id = o.id
      AND e.created_at < statement_timestamp() - make_interval(days => o.retention_days)
    ORDER BY e.created_at, e.id LIMIT 1
) AS expired
ORDER BY o.id
"""

# The next events of one organisation past its days, settled or not, from a place on: what stays is looked
# at once in a pass, however much of it there is.
FIND_EXPIRED_EVENTS = """
SELECT e.id, e.created_at,
       e.status = 'processed' AND NOT EXISTS (
           SELECT 1 FROM webhooks_delivery d WHERE d.event_id = e.id AND d.status IN ('pending', 'delivering', 'held')
       ),
       (SELECT count(*) FROM webhooks_delivery d WHERE d.event_id = e.id)
FROM events_event e JOIN orgs_organization o ON o.id = e.organization_id
WHERE e.organization_id = %(organization)s
  AND e.created_at < statement_timestamp() - make_interval(days => o.retention_days)
  AND (e.created_at, e.id) > (%(after_at)s::timestamptz, %(after_id)s::uuid)
ORDER BY e.created_at, e.id LIMIT %(rows)s
"""
LOCK_EVENTS = """
SELECT id FROM events_event WHERE id = ANY(%s::uuid[]) AND status = 'processed' ORDER BY id FOR UPDATE SKIP LOCKED
"""
LOCK_DELIVERIES_OF_EVENTS = """
SELECT event_id, status FROM webhooks_delivery WHERE event_id = ANY(%s::uuid[]) FOR UPDATE
"""
DELETE_ATTEMPTS = """
DELETE FROM webhooks_deliveryattempt WHERE delivery_id IN (
    SELECT id FROM webhooks_delivery WHERE event_id = ANY(%s::uuid[])
)
"""
DELETE_DELIVERIES = "DELETE FROM webhooks_delivery WHERE event_id = ANY(%s::uuid[])"
DELETE_FINISHED_RUNS = """
DELETE FROM webhooks_bulkrun WHERE id IN (
    SELECT r.id FROM webhooks_bulkrun r LEFT JOIN orgs_organization o ON o.id = r.organization_id
    WHERE r.state = 'done'
      AND r.finished_at < clock_timestamp() - make_interval(days => coalesce(o.retention_days, %(days)s))
    LIMIT %(rows)s FOR UPDATE OF r SKIP LOCKED
)
"""

# Deleted subscriptions stay while deliveries refer to them, and for the organisation's days.
FIND_FORGETTABLE_SUBSCRIPTIONS = """
SELECT s.id FROM webhooks_subscription s JOIN orgs_organization o ON o.id = s.organization_id
WHERE s.deleted_at < clock_timestamp() - make_interval(days => o.retention_days)
  AND NOT EXISTS (SELECT 1 FROM webhooks_delivery d WHERE d.subscription_id = s.id)
LIMIT %s FOR UPDATE OF s SKIP LOCKED
"""
FORGET_SUBSCRIPTIONS = (
    "DELETE FROM webhooks_bulkrun WHERE subscription_id = ANY(%s::uuid[])",
    "DELETE FROM webhooks_lane WHERE subscription_id = ANY(%s::uuid[])",
    "DELETE FROM webhooks_subscription WHERE id = ANY(%s::uuid[])",
)
