"""What the API's tests look for again and again."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection
from django_redis import get_redis_connection

from events.models import DedupKey, Event
from orgs.models import ApiKey
from webhooks.models import Delivery, Subscription

PROBLEM = "application/problem+json"


def assert_problem(response: Any, status: int, pointer: str | None = None) -> dict[str, Any]:
    """Check that the answer is a problem with this status which names `pointer`; return its document."""
    assert response.status_code == status, response.content[:500]
    assert response["Content-Type"] == PROBLEM
    assert b"Traceback" not in response.content
    document: dict[str, Any] = response.json()
    assert document["type"] == f"/api/problems/{document['code']}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert re.fullmatch("[a-z_]+", document["code"])
    assert document["request_id"] == response["X-Request-Id"]
    if pointer is not None:
        assert pointer in [error["pointer"] for error in document["errors"]], document
        assert all(error["detail"] for error in document["errors"])
    return document


def beat(name: str = "one") -> None:
    """Leave a fresh heartbeat, as a worker does."""
    redis = get_redis_connection("default")
    redis.sadd("rq:workers", f"rq:worker:{name}")
    redis.hset(f"rq:worker:{name}", "last_heartbeat", datetime.datetime.now(datetime.UTC).isoformat())


@contextmanager
def case(*names: object) -> Iterator[None]:
    """Name one of many cases that a test shows the same of, should it fail.

    As a test of its own, each would make an organization and a key again, which takes longer than its request.
    """
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {', '.join(map(str, names))}")
        raise


def rows() -> dict[str, int]:
    """Return how many rows there are of everything that a request can store."""
    return {model.__name__: model.objects.count() for model in (Event, DedupKey, Subscription, Delivery, ApiKey)}


def refuse_audit_entries(action: str) -> None:
    """Make the database refuse audit entries of one action, until the end of the test's transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # a table with checks still to come can't be altered
        cursor.execute(f"ALTER TABLE orgs_auditentry ADD CONSTRAINT refused CHECK (action <> '{action}') NOT VALID")


@contextmanager
def table_away(name: str) -> Iterator[None]:
    """Have a table missing."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {name} RENAME TO {name}_gone")
        try:
            yield
        finally:
            if not connection.in_atomic_block:  # else it is undone with the test's transaction
                cursor.execute(f"ALTER TABLE {name}_gone RENAME TO {name}")


def have_the_first_attempt_deadlock() -> None:
    """Have a trigger do so where the response under an `Idempotency-Key` is kept, until the test's rollback."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE SEQUENCE attempts")
        cursor.execute(
            "CREATE FUNCTION refuse_first() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF nextval('attempts') = 1 THEN RAISE EXCEPTION 'once' USING ERRCODE = 'deadlock_detected'; END IF;"
            " RETURN NEW; END $$"
        )
        cursor.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON orgs_idempotencykey FOR EACH ROW EXECUTE FUNCTION refuse_first()"
        )
