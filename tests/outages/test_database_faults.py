"""A database that is there and refuses: a clear 503 or another try, and nothing half-written."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account, Answer, assert_unavailable, events_stored, log_of, log_size


@pytest.fixture
def web_log(stack: Stack) -> int:
    """Return where the web process's log ends before the test."""
    return log_size(stack, "web")


def _in_background(work: object) -> list[Answer]:
    """Start `work` in a thread; its result is appended to the list that is returned."""
    results: list[Answer] = []
    threading.Thread(target=lambda: results.append(work()), daemon=True).start()  # type: ignore[operator]
    return results


def _waits_for_a_lock(stack: Stack) -> bool:
    return bool(stack.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'web' AND wait_event_type = 'Lock'"))


@pytest.mark.slow
def test_when_the_pool_is_exhausted_requests_get_503_and_what_got_a_connection_is_served(
    stack: Stack, account: Account, web_log: int
) -> None:
    stack.start_web(
        workers=1, env={"DB_POOL_SIZE": "1", "DB_POOL_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": "1s", "WEB_THREADS": "6"}
    )
    assert account.post_event(0).status == 202
    with stack.connect() as blocker, ThreadPoolExecutor(4) as pool:
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE events_event IN ACCESS EXCLUSIVE MODE")
        first = _in_background(lambda: account.call("GET", "/api/events"))
        wait_until(lambda: _waits_for_a_lock(stack), "the only connection isn't in use")
        for answer in pool.map(lambda _: account.call("GET", "/api/events"), range(4)):
            assert_unavailable(answer)
        assert account.call("GET", "/api/health").status == 200
        blocker.execute("COMMIT")
        wait_until(lambda: bool(first), "the one with the connection got no answer")
    assert first[0].status == 200
    assert account.post_event(9).status == 202
    assert "Traceback" not in log_of(stack, "web", web_log)


@pytest.mark.slow
def test_events_that_come_while_a_commit_waits_are_accepted_when_it_ends(stack: Stack, account: Account) -> None:
    stack.start_web(workers=1)
    with stack.connect() as blocker, ThreadPoolExecutor(8) as pool:
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE events_event IN EXCLUSIVE MODE")
        waiting = [pool.submit(account.post_event, number) for number in range(8)]
        wait_until(lambda: _waits_for_a_lock(stack), "no commit waits for the lock")
        assert account.call("GET", "/api/me").status == 200
        blocker.execute("COMMIT")
        assert [answer.result(60).status for answer in waiting] == [202] * 8
    assert events_stored(stack) == 8


def test_a_deadlock_is_tried_again_and_nothing_is_stored_twice(stack: Stack, account: Account, web_log: int) -> None:
    stack.start_web(workers=1)
    batch = [{"type": "a.b", "data": {"n": name}, "dedup_id": name} for name in ("a", "b")]
    take_key = (
        "INSERT INTO events_dedupkey (organization_id, dedup_id, event_id, fingerprint, expires_at)"
        " VALUES (%s, %s, gen_random_uuid(), '', now() + interval '1 hour')"
    )
    with stack.connect() as other:
        other.execute("SET deadlock_timeout = '10min'")  # so that it is the web process that is told
        other.execute("BEGIN")
        other.execute(take_key, (account.id, "b"))
        answers = _in_background(lambda: account.call("POST", "/api/events/batch", batch))
        wait_until(lambda: _waits_for_a_lock(stack), "the batch doesn't wait for key b")
        other.execute(take_key, (account.id, "a"))  # returns when the deadlock was broken
        other.execute("ROLLBACK")
        wait_until(lambda: bool(answers), "no answer")
    assert answers[0].status == 202
    assert answers[0].document["accepted"] == 2
    assert events_stored(stack) == 2
    log = log_of(stack, "web", web_log)
    assert "transaction_retried" in log
    assert "DeadlockDetected" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_serialization_failure_is_repeated_or_gets_503(stack: Stack, account: Account, web_log: int) -> None:
    """An operator may set the level for the role; then PostgreSQL refuses what it would merge otherwise."""
    stack.sql("ALTER ROLE web SET default_transaction_isolation = 'repeatable read'")
    try:
        stack.start_web(workers=1)
        event = {"type": "a.b", "data": {"n": 1}, "dedup_id": "x"}
        first = account.post_event(1, dedup_id="x")
        assert first.status == 202
        for path, body in (("/api/events/batch", [event]), ("/api/events", event)):
            with stack.connect() as other:
                other.execute("BEGIN")
                other.execute("UPDATE events_dedupkey SET expires_at = now() - interval '1 hour'")
                answers = _in_background(lambda path=path, body=body: account.call("POST", path, body))  # type: ignore[misc]
                wait_until(lambda: _waits_for_a_lock(stack), "the request doesn't wait for the key")
                other.execute("COMMIT")
                wait_until(answers.copy, "no answer")
            before = events_stored(stack)
            if answers[0].status == 503:
                assert_unavailable(answers[0])
                assert account.call("POST", path, body).status == 202
                assert events_stored(stack) == before + 1
            else:
                assert answers[0].status == 202
            # The key and its event were stored together or not at all.
            holders = stack.sql("SELECT event_id FROM events_dedupkey")
            assert stack.sql("SELECT count(*) FROM events_event WHERE id = %s", holders[0]) == [(1,)]
        log = log_of(stack, "web", web_log)
        assert "SerializationFailure" in log or "database_unavailable" in log
        assert "Traceback" not in log
    finally:
        stack.sql("ALTER ROLE web RESET default_transaction_isolation")


def _mount(folder: Path) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0777", "tmpfs", str(folder)], check=False, capture_output=True
    )
    return done.returncode == 0


@pytest.fixture
def full_disk(stack: Stack, tmp_path: Path) -> Iterator[None]:
    """Put events on a disk that is full.

    Root can have a real one: a tablespace on a file system of 2 MB.  Without that right a trigger
    raises what PostgreSQL then would, SQLSTATE 53100.
    """
    folder = Path("/var/lib/triggers-api") / f"disk-{os.getpid()}"
    real = os.geteuid() == 0
    if real:
        folder.mkdir(mode=0o777, parents=True)
        real = _mount(folder)
    try:
        if real:
            place = folder / "space"
            place.mkdir()
            uid = int(Path(f"/proc/{stack.postgres.pid}").stat().st_uid)
            os.chown(place, uid, -1)
            place.chmod(0o700)
            stack.sql(f"CREATE TABLESPACE small LOCATION '{place}'".encode())
            _move_events(stack, "small")
            _fill(folder / "ballast")
        else:
            stack.sql(
                "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$"
            )
            stack.sql("CREATE TRIGGER disk_full BEFORE INSERT ON events_event EXECUTE FUNCTION disk_full()")
        yield
    finally:
        if real:
            stack.stop_processes()
            (folder / "ballast").unlink(missing_ok=True)
            stack.empty()
            _move_events(stack, "pg_default")
            stack.sql("CHECKPOINT")
            stack.sql("DROP TABLESPACE IF EXISTS small")
            subprocess.run(["umount", str(folder)], check=False)
        else:
            stack.sql("DROP FUNCTION IF EXISTS disk_full CASCADE")
        if folder.exists():
            folder.rmdir()


def _move_events(stack: Stack, tablespace: str) -> None:
    partitions = stack.sql(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events_event'::regclass"
    )
    for (partition,) in partitions:
        stack.sql(f"ALTER TABLE {partition} SET TABLESPACE {tablespace}".encode())


def _fill(ballast: Path) -> None:
    """Write a file until the disk takes no more."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"." * 4096)
    assert shutil.disk_usage(ballast).free == 0


@pytest.mark.slow
def test_a_full_disk_gets_503_and_nothing_half_written(
    stack: Stack, account: Account, full_disk: None, web_log: int
) -> None:
    stack.start_web(workers=1)
    before = events_stored(stack)
    for number in range(3):
        assert_unavailable(
            account.post_event(number, dedup_id=f"d{number}", data={"text": "x" * 9000, "number": number})
        )
        assert_unavailable(
            account.call(
                "POST",
                "/api/events/batch",
                [{"type": "a.b", "data": {"number": n}, "dedup_id": f"b{n}"} for n in range(20)],
            )
        )
    assert events_stored(stack) == before
    assert stack.sql("SELECT count(*) FROM events_dedupkey") == [(0,)]
    assert account.call("GET", "/api/events").status == 200  # reading goes on
    log = log_of(stack, "web", web_log)
    assert "DiskFull" in log or "OperationalError" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_crash_between_the_dedup_id_and_the_response_never_makes_a_retry_look_like_a_duplicate_of_nothing(
    stack: Stack, account: Account
) -> None:
    """The dedup id and its event are one statement: a killed request leaves both or neither."""
    stack.start_web(workers=1)
    with stack.connect() as blocker:
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE events_event IN EXCLUSIVE MODE")
        failed: list[BaseException] = []

        def post() -> None:
            try:
                account.post_event(1, dedup_id="once")
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=post)
        thread.start()
        wait_until(lambda: _waits_for_a_lock(stack), "the insert doesn't wait")
        (pid,) = stack.web_workers()
        os.kill(pid, signal.SIGKILL)
        thread.join(30)
        assert failed  # no answer came
        stack.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'web'")
        blocker.execute("COMMIT")
    wait_until(lambda: bool(stack.web_workers()), "gunicorn starts no new worker")
    retried = account.post_event(1, dedup_id="once")
    assert retried.status == 202
    assert stack.sql("SELECT id::text FROM events_event") == [(retried.document["id"],)]
    again = account.post_event(1, dedup_id="once")
    assert (again.status, again.document["status"], again.document["id"]) == (200, "duplicate", retried.document["id"])
