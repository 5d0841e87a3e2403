"""The first rows over all organizations, from indexes that have a part for each organization.

It is SQL, because the ORM has no LATERAL joins.
"""

from __future__ import annotations

FEW = 20


def first_rows(table: str, wanted: str, *, newest: bool) -> str:
    """Return the beginning of a statement; its `found` has the id and created_at of the rows that are wanted first.

    wanted: the condition for a row, beside that of its organization.  newest: begin with the newest, not the oldest.
    The statement's parameters are `most`, how many rows are wanted, and `organization`, None for all.

    First, a few of each organization: nothing behind the `most`th of them is wanted.  So only organizations whose few
    all come before that can have more, and are looked into again.
    """
    order, side, last, end = ("DESC", ">=", "min", "-infinity") if newest else ("ASC", "<=", "max", "infinity")
    return f"""
WITH few AS MATERIALIZED (
    SELECT o.id AS organization_id, r.id, r.created_at FROM orgs_organization o CROSS JOIN LATERAL (
        SELECT id, created_at FROM {table} WHERE organization_id = o.id AND {wanted}
        ORDER BY created_at {order}, id {order} LIMIT {FEW}
    ) AS r
    WHERE %(organization)s::uuid IS NULL OR o.id = %(organization)s
), bound AS MATERIALIZED (
    SELECT coalesce((SELECT created_at FROM few ORDER BY created_at {order} OFFSET %(most)s - 1 LIMIT 1), '{end}') AS at
), deep AS MATERIALIZED (
    SELECT organization_id FROM few GROUP BY organization_id
    HAVING count(*) = {FEW} AND {last}(created_at) {side} (SELECT at FROM bound)
), found AS (
    SELECT id, created_at FROM few WHERE organization_id NOT IN (SELECT organization_id FROM deep)
    UNION ALL
    SELECT r.id, r.created_at FROM deep CROSS JOIN LATERAL (
        SELECT id, created_at FROM {table} WHERE organization_id = deep.organization_id AND {wanted}
          AND created_at {side} (SELECT at FROM bound)
        ORDER BY created_at {order}, id {order} LIMIT %(most)s
    ) AS r
)"""  # noqa: S608 - constants of ours
