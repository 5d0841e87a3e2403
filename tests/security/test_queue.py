"""Who can write to Redis can't run code: hostile jobs before a real worker."""

from __future__ import annotations

import json
import os
import pickle
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django_redis import get_redis_connection
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer, PickleSerializer

from core.wakeups import EVENTS, WEBHOOKS, ForbiddenJob, WakeUp, wake
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
    fetched: Job = WakeUp.fetch(job.id, connection=redis, serializer=JSONSerializer)
    with pytest.raises(Exception):  # noqa: B017
        _ = fetched.func


def test_the_plain_command_starts_our_worker_whatever_serializer_it_is_given(db: None) -> None:
    from triggers_project.worker import TriggersWorker

    redis = get_redis_connection("default")
    made = TriggersWorker(
        [Queue(EVENTS, connection=redis)], connection=redis, serializer=PickleSerializer, job_class=Job
    )
    assert made.serializer is JSONSerializer
    assert made.job_class is WakeUp
