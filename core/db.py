"""Helpers for handwritten SQL: cursors that bind on the server, and transactions that are repeated after a deadlock.

What the ORM says as well, the ORM says.  What stays SQL has one of two reasons, and says which next to it:

- *The ORM can't say it:* rows from arrays (`unnest`), UPDATE … FROM, RETURNING, writes to several tables in one
  statement; ON CONFLICT with a condition, or with what the existing row has; LATERAL joins, recursion,
  `(a, b) > (x, y)`, a filter or GROUP BY on rows that a LIMIT has cut off; advisory locks, settings of a transaction,
  and catalogs.
- *It would cost too much:* building a query takes the ORM longer than PostgreSQL needs for a look-up, and Django's
  cursor writes the parameters into the text, however long the arrays are, so that no plan is kept.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar, overload

import psycopg
import structlog
from django.db import (
    DEFAULT_DB_ALIAS,
    InterfaceError,
    NotSupportedError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from psycopg.rows import RowFactory, tuple_row

log = structlog.get_logger()
T = TypeVar("T")
R = TypeVar("R")

# After a deadlock or a serialization failure, the transaction should be repeated (PostgreSQL docs §13.5).
TRY_AGAIN = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
MAX_ATTEMPTS = 5


def is_transient(error: BaseException) -> bool:
    """Return whether the fault is one of the connection or the moment, and not of the data."""
    return isinstance(error, OperationalError | InterfaceError | psycopg.OperationalError | psycopg.InterfaceError)


class DatabaseFault(Enum):
    """Why the database didn't do what it was asked for, although nothing was wrong with that."""

    AWAY = auto()  # it doesn't respond, refuses connections, or has closed this one
    BUSY = auto()  # it waited for another transaction or worked for too long, and rolled back
    FULL = auto()  # it responds, and has no disk or memory for this, or can't read or write a file


# The first two characters of PostgreSQL's SQLSTATE: insufficient resources, system error.  Having too many connections
# is one of the former, and means that this process has none.
_FULL_CLASSES = {"53", "58"}
# A statement timeout, too, is a QueryCanceled.
_BUSY = (*TRY_AGAIN, psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)


def fault_of(error: BaseException) -> DatabaseFault | None:
    """Return what kind of fault a transient error is, None if it isn't transient."""
    if not is_transient(error):
        return None
    cause = error if isinstance(error, psycopg.Error) else error.__cause__  # Django's errors wrap psycopg's
    if isinstance(cause, _BUSY):
        return DatabaseFault.BUSY
    if not isinstance(cause, psycopg.Error) or isinstance(cause, psycopg.errors.TooManyConnections):
        return DatabaseFault.AWAY
    return DatabaseFault.FULL if (cause.sqlstate or "")[:2] in _FULL_CLASSES else DatabaseFault.AWAY


def describe_database_fault(error: BaseException) -> str | None:
    """Return a line for whoever starts a process, or None for a fault that is a bug and not the database's."""
    cause = error if isinstance(error, psycopg.Error) or error.__cause__ is None else error.__cause__
    reason = (str(cause).strip() or repr(cause)).splitlines()[0]
    if isinstance(cause, NotSupportedError):  # Django's own, from its look at the version
        return f"The server that DATABASE_URL names is too old: {reason}"
    if isinstance(cause, psycopg.errors.InsufficientPrivilege):
        return f"The role in DATABASE_URL lacks a right: {reason}."
    if isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        return (
            f"The database that DATABASE_URL names isn't migrated for this version: run `manage.py migrate` ({reason})."
        )
    refused_option = isinstance(cause, psycopg.ProgrammingError) and cause.sqlstate is None
    if is_transient(cause) or refused_option:
        return f"The database that DATABASE_URL names can't be used: {reason}"
    return None


@overload
def server_cursor() -> psycopg.Cursor[Any]: ...
@overload
def server_cursor(row_factory: RowFactory[R]) -> psycopg.Cursor[R]: ...
def server_cursor(row_factory: Any = tuple_row) -> psycopg.Cursor[Any]:
    """Return a psycopg cursor on Django's connection, with parameters bound by the server.

    row_factory: what a row becomes, such as `psycopg.rows.class_row(SomeDataclass)`, or `scalar_row` for one column; by
    default a tuple.

    Django's own cursor writes parameters into the text; arrays of thousands of values are cheaper
    bound, and the statement's plan is kept.  Takes part in Django's current transaction.
    """
    wrapper = connections[DEFAULT_DB_ALIAS]
    if wrapper.connection is None:
        wrapper.ensure_connection()
    raw: Any = wrapper.connection
    return psycopg.Cursor(raw, row_factory=row_factory)


# For transactions that run all the time.  Their plans are kept, because planning for all partitions takes longer than
# running most of them.  They use indexes, because a plan may come from a time when a partition was small.  Before
# PostgreSQL 18, a plan that has to read a table nevertheless counts as so expensive that it would be compiled (JIT),
# which takes 140 ms.
KEEP_PLANS = (
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),"
    " set_config('jit', 'off', true)"
)
# The same, for commits that a crash of PostgreSQL may forget.
KEEP_PLANS_WITHOUT_WAITING = f"{KEEP_PLANS}, set_config('synchronous_commit', 'off', true)"


@contextmanager
def pipelined() -> Iterator[None]:
    """Send the statements inside without waiting for each result; for use within a transaction.

    A round trip itself costs little, but a thread that waits for one loses the interpreter to a busy thread. Fetching
    waits for the rows; a statement that nothing is fetched from raises its error where the block ends or, if that comes
    first, where something else is fetched.  A cursor keeps the results of one statement, so each statement whose
    results are needed needs its own cursor.
    """
    connection.ensure_connection()
    raw: Any = connection.connection
    with raw.pipeline():
        yield


def in_transaction(work: Callable[[], T]) -> T:
    """Run `work` in a transaction and return its result; repeat it after a deadlock.

    Raises what `work` raises; after MAX_ATTEMPTS also the deadlock itself.
    """

    def transact() -> T:
        with transaction.atomic():
            return work()

    return _try_again(transact)


@dataclass(frozen=True, slots=True)
class _Effect:
    """What `after_transaction` was called with."""

    run: Callable[[], object]
    even_if_it_fails: bool


# What is to be done after the outermost `in_transaction`; None outside of one.
_effects: ContextVar[list[_Effect] | None] = ContextVar("effects", default=None)


def after_transaction(effect: Callable[[], object], *, even_if_it_fails: bool = False) -> None:
    """Run `effect` when the `in_transaction` that this is called in has committed; at once outside of one.

    For what a rollback doesn't take back: metrics, logs, wake-ups.  However often the transaction is repeated, only the
    effects of the last attempt are run.  even_if_it_fails: also if that attempt was rolled back, because its work
    raised.
    """
    effects = _effects.get()
    if effects is None:
        effect()
    else:
        effects.append(_Effect(effect, even_if_it_fails))


def _try_again(transact: Callable[[], T]) -> T:
    """Run `transact`, again after a deadlock, and then the effects of its last attempt."""
    outer = _effects.get()
    effects: list[_Effect] = [] if outer is None else outer
    noted_before = len(effects)
    is_done = False
    token = _effects.set(effects)
    try:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            del effects[noted_before:]  # those of an attempt that was rolled back
            try:
                result = transact()
                is_done = True
                return result
            except (OperationalError, *TRY_AGAIN) as error:
                cause = error if isinstance(error, TRY_AGAIN) else error.__cause__
                if not isinstance(cause, TRY_AGAIN) or attempt == MAX_ATTEMPTS:
                    raise
                log.info("transaction_retried", error=type(cause).__name__, attempt=attempt)
                time.sleep(random.uniform(0, 0.02 * attempt))
        raise AssertionError("unreachable")
    finally:
        _effects.reset(token)
        if not is_done:
            effects[noted_before:] = [one for one in effects[noted_before:] if one.even_if_it_fails]
        if outer is None:
            for one in effects:
                one.run()


def in_pipelined_transaction(work: Callable[[], T]) -> T:
    """Run `work` in a transaction as `in_transaction` does, the whole of it in one pipeline.

    The statements that nothing was fetched from go out together with the COMMIT, which saves a round trip; what they
    returned can be fetched from their cursors afterward.  Django doesn't know about this transaction: `work` must use
    cursors of `server_cursor`, or read through the ORM, and nothing in it waits for `on_commit`.  Within a transaction
    of Django's, it is a savepoint of that.
    """
    if connection.in_atomic_block:
        return in_transaction(work)
    return _try_again(lambda: _commit_in_pipeline(work))


def keeping_plans(work: Callable[[], T]) -> T:
    """Run `work`, which reads with cursors of `server_cursor`, in a transaction that keeps its plans (KEEP_PLANS)."""

    def read() -> T:
        server_cursor().execute(KEEP_PLANS)
        return work()

    return in_pipelined_transaction(read)


def _commit_in_pipeline(work: Callable[[], T]) -> T:
    connection.ensure_connection()
    raw: Any = connection.connection
    control = server_cursor()
    try:
        with raw.pipeline():
            control.execute("BEGIN")
            result = work()
            control.execute("COMMIT")
        # In a transaction in which a statement failed, COMMIT results in ROLLBACK.
        if control.statusmessage != "COMMIT":
            raise psycopg.errors.InFailedSqlTransaction("a statement failed and its error was dropped")
    except BaseException:
        if not raw.closed:
            raw.rollback()
        raise
    return result


def wait_for_results() -> None:
    """Wait until the server has run what was sent in the pipeline of this thread's connection."""
    with server_cursor() as cursor:
        cursor.execute("SELECT 1").fetchone()


def borrow_connection(work: Callable[[], T]) -> T:
    """Run `work` on a thread of our own and give its database connection back to the pool afterward.

    Outside of requests, nothing else does that.  The pool checks the connection when it is borrowed again, so a thread
    notices a database that was restarted.
    """
    try:
        return work()
    finally:
        connection.close()


def keep_connection(work: Callable[[], T]) -> T:
    """Run `work` as `borrow_connection` does, and let this thread keep the connection if it succeeds.

    For a thread that runs something every few milliseconds: borrowing takes as long as a short statement.  It calls
    `give_connection_back` when it has had nothing to do for a while.
    """
    raw: Any = connection.connection
    if raw is not None and not raw.works():  # the database was restarted, or a pooler closed it
        connection.close()
    try:
        return work()
    except BaseException:
        connection.close()
        raise


def give_connection_back() -> None:
    """Give the connection that this thread has kept back to the pool."""
    connection.close()
