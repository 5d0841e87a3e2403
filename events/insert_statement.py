"""The statement with which a group commit stores events, and where a fan-out in the same statement extends it."""

from __future__ import annotations

from dataclasses import dataclass

from orgs import keys


@dataclass(frozen=True, slots=True)
class Extension:
    """What a fan-out adds to the statement; each part of it is SQL.

    arrays, columns: of `item`, as they follow those of the events, each beginning with a comma.  decide: CTEs that see
    `permitted`, each ending with a comma.  is_processed: the condition on an event `p` under which it needs no other
    fan-out; None if all events need one.  then: CTEs that see what was `stored`, each beginning with a comma.
    was_planned: the condition on an `item` that may be processed.  says: columns of the result about one that isn't,
    beginning with a comma.
    """

    arrays: str = ""
    columns: str = ""
    decide: str = ""
    is_processed: str | None = None
    then: str = ""
    was_planned: str = "false"
    says: str = ""

    @property
    def status(self) -> str:
        """The values of `status` and `processed_at` of an event that is stored at `t`."""
        if self.is_processed is None:
            return "'accepted', NULL"
        return (
            f"CASE WHEN {self.is_processed} THEN 'processed' ELSE 'accepted' END,"
            f" CASE WHEN {self.is_processed} THEN t END"
        )

    @property
    def is_reported(self) -> str:
        """The condition on an `item` that is in the result."""
        if self.is_processed is None:
            return "item.id NOT IN (SELECT id FROM stored)"
        unprocessed = "item.id NOT IN (SELECT id FROM stored WHERE status = 'processed')"
        return f"{unprocessed} AND ({self.was_planned} OR item.id NOT IN (SELECT id FROM stored))"  # noqa: S608


def insert_events(extension: Extension = Extension()) -> str:
    """Return the statement that stores the events of many requests.

    SQL, because the ORM can't write to several tables in one statement.  As `ingest._INSERT_BATCH`, for events of many
    organizations, each inserted only if its key may still send it, and if the organization's rate limit and catalog of
    event types are still those that were remembered with the key (`orgs.caller_cache`) and checked against.  Claiming
    the dedup ids in their order keeps two statements from deadlocking.

    It returns what was not stored; `permitted` distinguishes a key that has changed from a dedup id that is taken.  It
    also returns what was to be processed at once and isn't.
    """
    return f"""
WITH item AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(organization_ids)s::uuid[], %(key_ids)s::uuid[], %(rates)s::int[], %(catalogs)s::int[],
        %(types)s::text[], %(data)s::text[], %(dedup_ids)s::text[], %(fingerprints)s::bytea[],
        %(request_ids)s::bytea[], %(traces)s::text[], %(cloudevents)s::text[], %(channels)s::text[],
        %(ordering_keys)s::text[]{extension.arrays}
    ) AS t(
        id, organization_id, key_id, rate, catalog, type, data, dedup_id, fingerprint, request_id, trace, cloudevent,
        channels, ordering_key{extension.columns}
    )
), usable AS MATERIALIZED (
    SELECT k.id, o.events_per_minute, o.catalog_version
    FROM orgs_apikey k JOIN orgs_organization o ON o.id = k.organization_id
    WHERE k.id = ANY (%(distinct_key_ids)s::uuid[]) AND {keys.USABLE} AND %(scope)s = ANY (k.scopes)
), permitted AS MATERIALIZED (
    SELECT item.* FROM item
    JOIN usable u ON u.id = item.key_id AND u.events_per_minute = item.rate AND u.catalog_version = item.catalog
), {extension.decide} claimed AS (
    INSERT INTO events_dedupkey AS k (organization_id, dedup_id, event_id, fingerprint, expires_at)
    SELECT organization_id, dedup_id, id, fingerprint, clock_timestamp() + %(window)s
    FROM permitted WHERE dedup_id IS NOT NULL ORDER BY organization_id, dedup_id
    ON CONFLICT (organization_id, dedup_id) DO UPDATE
        SET event_id = EXCLUDED.event_id, fingerprint = EXCLUDED.fingerprint, expires_at = EXCLUDED.expires_at
        WHERE k.expires_at <= clock_timestamp()
    RETURNING event_id
), stored AS (
    INSERT INTO events_event (
        id, organization_id, type, data, dedup_id, packed_request_id, trace, cloudevent, channels, ordering_key,
        status, processed_at, failed_attempts, last_error, due_at, created_at
    )
    SELECT p.id, p.organization_id, p.type, p.data, p.dedup_id, p.request_id, p.trace, p.cloudevent,
           string_to_array(p.channels, ','), p.ordering_key, {extension.status}, 0, '', t, t
    FROM permitted p, clock_timestamp() AS t
    WHERE p.dedup_id IS NULL OR p.id IN (SELECT event_id FROM claimed)
    RETURNING id, organization_id, status
){extension.then}
SELECT item.id, EXISTS (SELECT FROM permitted p WHERE p.id = item.id) AS permitted{extension.says}
FROM item WHERE {extension.is_reported}
"""  # noqa: S608 - constants of ours
