"""SQL for rows that are made in bulk, the same on every PostgreSQL that is supported."""

from __future__ import annotations


def uuid7(shift: str = "interval '0'") -> str:
    """Return an expression for a UUID of version 7 whose time is now plus `shift`, which only PostgreSQL 18 has."""
    milliseconds = f"(extract(epoch FROM clock_timestamp() + ({shift})) * 1000)::bigint"
    timed = f"overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send({milliseconds}) FROM 3) FROM 1 FOR 6)"
    return f"encode(set_bit(set_bit({timed}, 52, 1), 53, 1), 'hex')::uuid"  # version 4 becomes 7
