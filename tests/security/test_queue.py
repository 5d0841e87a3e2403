"""Who can write to Redis can't run code: hostile jobs before a real worker."""

from __future__ import annotations

import base64
import json
import os
import pickle
import tracemalloc
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django_redis import get_redis_connection
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer, PickleSerializer

from core.wakeups import EVENTS, WEBHOOKS, ForbiddenJob, WakeUp, wake
from devstack.http_receiver import Receiver
from devstack.processes import Process, worker
from devstack.waiting import wait_until
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.servers import postgres


@pytest.fixture
def running(transactional_db: None, tmp_path: Path) -> Iterator[Process]:
    """Return a real worker on the tests' database."""
    from django.db import connection

    process = worker(
        tmp_path / "worker.log", {"DATABASE_URL": postgres.url(connection.settings_dict["NAME"]), "LOG_LEVEL": "DEBUG"}
    )
    try:
        yield process
    finally:
        process.stop(30)


class _Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def _push(queue: str, fields: dict[str, Any]) -> str:
    """Put a job into a queue by hand, as who can write to Redis would."""
    redis = get_redis_connection("default")
    job_id = str(uuid.uuid4())
    base = {
        "created_at": "2026-01-01T00:00:00.000000Z", "enqueued_at": "2026-01-01T00:00:00.000000Z", "status": "queued",
        "origin": queue, "timeout": "180", "description": "x", "started_at": "", "ended_at": "", "worker_name": "",
    }  # fmt: skip
    redis.hset(f"rq:job:{job_id}", mapping={**base, **fields})
    redis.sadd("rq:queues", f"rq:queue:{queue}")
    redis.rpush(f"rq:queue:{queue}", job_id)
    return job_id


def test_a_wake_up_is_plain_json_that_names_one_of_two_functions(db: None) -> None:
    assert wake(EVENTS)
    assert wake(WEBHOOKS)
    redis = get_redis_connection("default")
    jobs = list(redis.scan_iter("rq:job:*"))
    assert len(jobs) == 2
    named = set()
    for key in jobs:
        fields = redis.hgetall(key)
        for name, value in fields.items():
            assert not value.startswith(b"\x80"), f"{name!r} looks pickled"
        data = json.loads(zlib.decompress(fields[b"data"]))
        assert data[1:] == [None, [], {}]
        named.add(data[0])
        if b"meta" in fields:
            assert json.loads(fields[b"meta"]) == {}
    assert named == set(settings.WAKE_UP_JOBS.values())


@pytest.mark.django_db(transaction=True)
def test_hostile_jobs_are_not_run_and_the_worker_lives_on(
    organization: Organization, running: Process, tmp_path: Path
) -> None:
    marks = {
        name: tmp_path / f"owned-{name}" for name in ("pickle", "raw", "meta", "json", "arguments", "eval", "back")
    }

    def touch(name: str) -> str:
        return f"touch {marks[name]}"

    def as_json(function: str, *arguments: Any, **named: Any) -> bytes:
        return zlib.compress(json.dumps([function, None, list(arguments), named]).encode())

    ours = settings.WAKE_UP_JOBS[EVENTS]
    hostile = [
        {"data": zlib.compress(pickle.dumps(_Bomb(touch("pickle"))))},
        {"data": pickle.dumps(("os.system", None, (touch("raw"),), {}))},
        {"data": as_json(ours), "meta": pickle.dumps(_Bomb(touch("meta")))},
        {"data": as_json("os.system", touch("json"))},
        {"data": as_json("subprocess.getoutput", touch("json"))},
        {"data": as_json("builtins.eval", f"__import__('os').system({touch('eval')!r})")},
        {"data": as_json(ours, touch("arguments"))},
        {"data": as_json(ours, command=touch("arguments"))},
        {"data": as_json("triggers_project.jobs.fan_out_for", 0.1)},
        {
            "data": as_json(ours), "success_callback_name": "os.system", "failure_callback_name": "os.system",
            "stopped_callback_name": "os.system",
        },
        {"data": as_json("os.system", touch("back")), "failure_callback_name": "os.system"},
        {"data": b"\xff\xfe"}, {"data": b""}, {"data": zlib.compress(b"[]")}, {"data": zlib.compress(b"[1,2,3,4]")}, {},
    ]  # fmt: skip
    redis = get_redis_connection("default")
    for queue in (EVENTS, WEBHOOKS):
        for fields in hostile:
            _push(queue, fields)
        redis.rpush(f"rq:queue:{queue}", str(uuid.uuid4()), b"../../etc/passwd", b"\xff\xfe")
    # The queue drains, each job refused, and the same process goes on to do what it is there for.
    wait_until(
        lambda: not running.alive or not redis.llen("rq:queue:events") + redis.llen("rq:queue:webhooks"), "not drained"
    )
    assert running.alive, running.last_line()
    event = ingest(organization.id, NewEvent("a", "1", None)).event_id
    wake(EVENTS)
    wait_until(lambda: Event.objects.get(id=event).status == "processed", "the worker does nothing any more")
    assert running.alive
    for name, mark in marks.items():
        assert not mark.exists(), f"the job with {name} was run"
    assert not list(tmp_path.glob("owned-*"))


@pytest.mark.parametrize("function", ["os.system", "triggers_project.jobs.fan_out_for", "", "triggers_project.jobs"])
def test_a_job_that_names_another_function_is_refused_before_it_is_imported(function: str) -> None:
    redis = get_redis_connection("default")
    job = WakeUp.create(settings.WAKE_UP_JOBS[EVENTS], connection=redis, serializer=JSONSerializer)
    job._func_name = function
    with pytest.raises(ForbiddenJob):
        _ = job.func


def test_a_plain_rq_client_with_pickle_is_refused_as_well(db: None) -> None:
    redis = get_redis_connection("default")
    job = Queue(EVENTS, connection=redis, serializer=PickleSerializer).enqueue_call("os.system", ("true",))
    with pytest.raises(NoSuchJobError):
        WakeUp.fetch(job.id, connection=redis, serializer=PickleSerializer)


def test_the_plain_command_starts_our_worker_whatever_serializer_it_is_given(db: None) -> None:
    from triggers_project.worker import TriggersWorker

    redis = get_redis_connection("default")
    made = TriggersWorker(
        [Queue(EVENTS, connection=redis)], connection=redis, serializer=PickleSerializer, job_class=Job
    )
    assert made.serializer is JSONSerializer
    assert made.job_class is WakeUp


# --- what costs more than it takes in Redis ---------------------------------------------------------


def zlib_bomb(megabytes: int) -> bytes:
    """Return what inflates to so many megabytes of zeros, without having had them in memory."""
    compressor = zlib.compressobj(9)
    return b"".join(compressor.compress(bytes(1 << 20)) for _ in range(megabytes)) + compressor.flush()


OURS = zlib.compress(json.dumps(["triggers_project.jobs.process_events", None, [], {}]).encode())


def bombs() -> list[dict[str, Any]]:
    """Return the fields of jobs that are small in Redis and large, or worse, once they are read."""
    large, small = zlib_bomb(300), zlib_bomb(50)
    assert len(large) < 400_000
    assert len(small) < 60_000  # so that only the inflation shows what it is
    return [
        {"data": large},
        {"data": small},
        {"data": zlib.compress(small)},
        {"data": small[:-9]},  # cut short: RQ would inflate most of it before it notices
        {"data": OURS, "exc_info": small},
        {"data": OURS, "exc_info": large},
        {"data": OURS, "description": b"x" * 2_000_000},
        {"data": OURS, "meta": b"[" + b"0," * 1_000_000 + b"0]"},
        {"data": OURS, "result": b"[" * 1_000_000},
        {"data": b"[" * 60_000},
    ]


def peak_memory(process: Process) -> int:
    """Return the most bytes that the process has had in memory."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.django_db(transaction=True)
def test_bombs_cost_a_worker_no_memory_and_what_cant_be_read_no_job_loop(
    organization: Organization, running: Process, tmp_path: Path
) -> None:
    redis = get_redis_connection("default")

    def process_an_event() -> None:
        event = ingest(organization.id, NewEvent("a", "1", None)).event_id
        wake(EVENTS)
        wait_until(lambda: Event.objects.get(id=event).status == "processed", "the worker does nothing any more")

    process_an_event()
    before = peak_memory(running)
    for queue in (EVENTS, WEBHOOKS):
        for fields in bombs():
            _push(queue, fields)
        for fields in ({"created_at": "yesterday"}, {"status": "odd"}, {"enqueued_at": b"\xff"}):
            _push(queue, {"data": OURS, **fields})
        redis.set("rq:job:plain", "text")
        redis.rpush(f"rq:queue:{queue}", "plain", "x" * 1000, "a b")
    wait_until(
        lambda: not running.alive or not redis.llen("rq:queue:events") + redis.llen("rq:queue:webhooks"), "not drained"
    )
    process_an_event()
    grown = peak_memory(running) - before
    assert grown < 40 << 20, f"{grown >> 20} MiB more"
    log = (tmp_path / "worker.log").read_text()
    assert log.count('"job_dropped"') == 2 * 10  # five bombs, three that can't be read, two that are no jobs
    assert "inflates beyond all bounds" in log
    assert "unhandled exception" not in log, "RQ's loop ended, and cost a second"


@pytest.mark.django_db(transaction=True)
def test_jobs_that_were_abandoned_with_garbage_in_them_dont_stop_a_worker_at_its_start(
    organization: Organization, tmp_path: Path
) -> None:
    from django.db import connection

    redis = get_redis_connection("default")
    for fields in (*bombs(), {"data": OURS, "created_at": "yesterday"}):
        job_id = _push(EVENTS, {**fields, "status": "started"})
        redis.lrem("rq:queue:events", 0, job_id)
        redis.zadd("rq:wip:events", {f"{job_id}:execution": 1})
    environment = {"DATABASE_URL": postgres.url(connection.settings_dict["NAME"])}
    process = worker(tmp_path / "worker.log", environment)
    try:
        event = ingest(organization.id, NewEvent("a", "1", None)).event_id
        wake(EVENTS)
        wait_until(lambda: Event.objects.get(id=event).status == "processed", "the worker does nothing")
        wait_until(lambda: not redis.llen("rq:queue:events"), "the job loop doesn't move")
        assert "unhandled exception" not in (tmp_path / "worker.log").read_text()
    finally:
        process.stop(30)


@pytest.mark.django_db(transaction=True)
def test_a_failed_job_makes_no_request_and_isnt_tried_again(running: Process, tmp_path: Path) -> None:
    redis = get_redis_connection("default")
    failing = zlib.compress(json.dumps(["os.system", None, ["true"], {}]).encode())
    with Receiver() as receiver:
        webhook = {"url": receiver.url("/internal"), "job_status": "failed", "method": "POST"}
        _push(EVENTS, {"data": failing, "webhooks": json.dumps([webhook])})
        _push(EVENTS, {"data": failing, "retries_left": "5", "number_of_retries": "0", "retry_intervals": "[0]"})
        _push(EVENTS, {"data": failing, "timeout": "-1", "failure_ttl": "9" * 30})
        wait_until(lambda: redis.zcard("rq:failed:events") == 3, "the jobs didn't fail, each once")
        assert not redis.llen("rq:queue:events")
        assert receiver.requests == []
    assert running.alive


def test_what_rq_reads_of_a_webhook_is_what_this_is_about() -> None:
    """The job in the test above would make a request, if RQ's own class read it."""
    redis = get_redis_connection("default")
    webhooks = json.dumps([{"url": "http://127.0.0.1:9/", "job_status": "failed", "method": "POST"}])
    job_id = _push(EVENTS, {"data": OURS, "webhooks": webhooks})
    assert Job.fetch(job_id, connection=redis, serializer=JSONSerializer).webhooks
    assert not WakeUp.fetch(job_id, connection=redis).webhooks


# --- the admin's RQ pages ---------------------------------------------------------------------------


@pytest.fixture
def operator(db: None) -> Client:
    """Return a superuser's browser."""
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.create_superuser("root"), backend="django.contrib.auth.backends.ModelBackend")
    return client


def test_deleting_failed_jobs_unpickles_nothing(operator: Client, tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    redis = get_redis_connection("default")
    for name in ("meta", "result"):
        job_id = _push(EVENTS, {"data": OURS, "status": "failed", name: pickle.dumps(_Bomb(f"touch {mark}"))})
        redis.zadd("rq:failed:events", {job_id: 2**40})
    for name in ("failed_jobs", "delete_failed_jobs"):
        operator.get(reverse(f"django_rq:{name}", args=[0]))
    answer = operator.post(reverse("django_rq:delete_failed_jobs", args=[0]), {"post": "yes"})
    assert answer.status_code == 302
    assert not mark.exists()
    assert redis.zcard("rq:failed:events") == 0


def test_bombs_cost_the_pages_no_memory(operator: Client) -> None:
    redis = get_redis_connection("default")
    small = zlib_bomb(50)
    jobs = [_push(EVENTS, {**fields, "status": "failed"}) for fields in bombs()]
    for job_id in jobs:
        redis.zadd("rq:failed:events", {job_id: 2**40})
        redis.xadd(f"rq:results:{job_id}", {"type": 2, "exc_string": base64.b64encode(small), "worker_name": ""})
        redis.xadd(f"rq:results:{job_id}", {"type": 2, "exc_string": "short", "worker_name": ""})
    tracemalloc.start()
    try:
        for name in ("jobs", "failed_jobs", "started_jobs", "queue_details"):
            assert operator.get(reverse(f"django_rq:{name}", args=[0])).status_code == 200
        for job_id in jobs:
            for name in ("job_detail", "requeue_job", "delete_job"):
                assert operator.get(reverse(f"django_rq:{name}", args=[0, job_id])).status_code in {200, 404}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20, f"{peak >> 20} MiB"


def test_a_failure_s_traceback_is_still_shown(operator: Client) -> None:
    redis = get_redis_connection("default")
    job_id = _push(EVENTS, {"data": OURS, "status": "failed"})
    told = base64.b64encode(zlib.compress(b"Traceback: it broke")).decode()
    redis.xadd(f"rq:results:{job_id}", {"type": 2, "exc_string": told, "worker_name": "w"})
    page = operator.get(reverse("django_rq:job_detail", args=[0, job_id]))
    assert page.status_code == 200
    [result] = WakeUp.fetch(job_id, connection=redis).results()
    assert result.exc_string == "Traceback: it broke"
    redis.zadd("rq:failed:events", {job_id: 2**40})
    operator.post(reverse("django_rq:requeue_job", args=[0, job_id]), {"requeue": "Requeue"})
    assert redis.zcard("rq:failed:events") == 0
