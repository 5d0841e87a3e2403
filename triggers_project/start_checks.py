"""What gunicorn and a worker look at before they start: can this process use its database and its Redis at all?

A fault that passes by itself, such as a server that is still starting, is told and waited for.  Anything else would
fail every request and every claim, so the process ends with the line that says what to change.
"""

from __future__ import annotations

import re
from typing import Any

import structlog
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import Error as DatabaseError
from django_redis import get_redis_connection
from redis.exceptions import RedisError

from core.db import describe_database_fault
from core.redis import breaker
from core.tracing import require_packages

log = structlog.get_logger()

# What PostgreSQL, PgBouncer, OpenSSL, and the resolver say of a fault that somebody has to mend.  What isn't found
# here (another language, another pooler) is told and waited for.
_LASTING = re.compile(
    "password|authentication|pg_hba|does not exist|no such (database|user)|permission denied|not permitted|"
    "certificate|not support SSL|too old|connection option|unsupported startup parameter|"
    "[Nn]ame or service not known|No address associated|nodename nor servname"
)
# The tests run on these and on every newer one.  Django refuses an older PostgreSQL by itself.
OLDEST_POSTGRES = 14
OLDEST_REDIS = 7
# SQL, because it asks PostgreSQL's catalogs.  A table that isn't there or that the role may not read, if there is one.
_UNREADABLE = """
SELECT name FROM unnest(%s::text[]) AS name
WHERE to_regclass(name) IS NULL OR NOT has_table_privilege(name, 'SELECT') LIMIT 1
"""
CLUSTER = (
    "REDIS_URL names a Redis Cluster, whose keys lie on different servers, which RQ can't use: "
    "name a single server, or use REDIS_SENTINELS for a failover."
)


def check_services() -> None:
    """Check both, and whether traces can be sent.  Raises ImproperlyConfigured with one line that names the setting."""
    require_packages()
    check_database()
    check_redis()


def check_database() -> None:
    """Connect, and see whether the tables are there and may be read.  Raises ImproperlyConfigured."""
    # Without the pool, which doesn't tell why it has no connection.
    options = {name: value for name, value in connection.settings_dict["OPTIONS"].items() if name != "pool"}
    alone: Any = DatabaseWrapper({**connection.settings_dict, "OPTIONS": options}, alias=connection.alias)
    try:
        executor = MigrationExecutor(alone)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            raise ImproperlyConfigured(
                "The database that DATABASE_URL names isn't migrated for this version: run `manage.py migrate`."
            )
        with alone.cursor() as cursor:
            cursor.execute(_UNREADABLE, [alone.introspection.django_table_names()])
            unreadable = next((name for (name,) in cursor.fetchall()), None)
        if unreadable:
            raise ImproperlyConfigured(
                f"The role in DATABASE_URL may not read the table {unreadable}: see "
                '"Least privilege" in docs/operations.md.'
            )
    except DatabaseError as error:
        line = describe_database_fault(error)
        if line is None:
            raise
        if _LASTING.search(line):
            raise ImproperlyConfigured(line) from error
        log.warning("database_unavailable", setting="DATABASE_URL", reason=line)
    finally:
        alone.close()


def check_redis() -> None:
    """Check whether Redis responds.  Raises ImproperlyConfigured for a Redis Cluster.

    All else is told and waited for: everything works without Redis, only slower.
    """
    try:
        redis = get_redis_connection("default")
        clustered = redis.info("cluster").get("cluster_enabled")
        version = str(redis.info("server").get("redis_version", ""))  # Valkey has one, too: the Redis that it is like
    except (RedisError, OSError) as error:
        breaker.failed(error)
        return
    if clustered:
        raise ImproperlyConfigured(CLUSTER)
    if is_too_old(version):
        log.warning("redis_version_not_supported", setting="REDIS_URL", version=version, oldest=OLDEST_REDIS)


def is_too_old(version: str) -> bool:
    """Tell whether a Redis of that version is older than what the tests run on."""
    major = version.partition(".")[0]
    return major.isascii() and major.isdigit() and int(major) < OLDEST_REDIS
