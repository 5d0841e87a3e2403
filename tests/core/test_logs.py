"""Logs: one JSON line on stderr for each thing, whatever it holds, ours and the libraries' alike."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import logs

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import logging, structlog, uuid
from core.logs import configure_logging, current_request_id
configure_logging("INFO")
log = structlog.get_logger()
current_request_id.set("r1")
log.info("plain", number=1, text="a\\nb\\u2028\\x1b[31m", nested={"a": [1, None]})
log.debug("too detailed")
log.info("surrogate", text="\\ud800")
log.info("large", number=2**80)
log.info("odd", value=object, keys={1: 2})
log.info("ids", id=uuid.UUID(int=1))
log.info("ids", id=uuid.UUID(int=1), number=2**80)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("fault")
current_request_id.set(None)
logging.getLogger("somebody").warning("hello %s\\nsecond line", "world")
logging.getLogger("somebody").info("told")
logging.getLogger("django.request").error("logged by the middleware already")
logging.getLogger("rq.worker").info("chatter")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("somebody").exception("theirs")
"""


def lines_of(script: str) -> tuple[list[dict[str, Any]], str]:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return [json.loads(line) for line in done.stderr.split("\n")[:-1]], done.stdout


def test_each_thing_is_one_json_line_on_stderr() -> None:
    lines, stdout = lines_of(SCRIPT)
    assert stdout == ""
    assert [line["event"] for line in lines] == [
        "plain", "surrogate", "large", "odd", "ids", "ids", "fault", "hello world\nsecond line", "told", "theirs",
    ]  # fmt: skip
    for line in lines:
        assert line["level"] in {"info", "warning", "error"}
        assert line["timestamp"].endswith("Z")
    ours, theirs = lines[:7], lines[7:]
    assert {line["request_id"] for line in ours} == {"r1"}
    assert ours[0]["text"] == "a\nb\u2028\x1b[31m"
    assert ours[0]["nested"] == {"a": [1, None]}
    assert ours[2]["number"] == 2**80
    assert ours[4]["id"] == ours[5]["id"] == "00000000-0000-0000-0000-000000000001"
    assert "ZeroDivisionError" in ours[6]["exception"]
    assert all(line["logger"] == "somebody" for line in theirs)
    assert "ZeroDivisionError" in theirs[-1]["exception"]


def test_the_level_is_the_one_that_was_set() -> None:
    lines, _ = lines_of(SCRIPT.replace('"INFO"', '"ERROR"'))
    assert [line["event"] for line in lines] == ["fault", "theirs"]


def test_no_value_keeps_a_line_from_being_written() -> None:
    for value in ("\ud800", 2**80, {1: 2}, object(), float("nan"), b"\xff"):
        line = json.loads(logs._render(None, "", {"event": "x", "value": value}))
        assert line["event"] == "x"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def output(path: Path) -> Iterator[logs.Output]:
    with path.open("wb") as file:
        yield logs.Output(lambda: file)


def test_a_line_is_written_at_once(output: logs.Output, path: Path) -> None:
    output.info(b"one")
    assert path.read_text() == "one\n"
    output.warning(b"two")
    assert path.read_text() == "one\ntwo\n"


def test_a_warning_is_written_at_once_behind_the_lines_that_were_kept(output: logs.Output, path: Path) -> None:
    with output.together():
        output.info(b"one")
        output.warning(b"two")
        assert path.read_text() == "one\ntwo\n"
        output.info(b"three")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_lines_that_are_written_together_stay_whole_in_a_pipe_that_processes_share() -> None:
    script = (
        "from core.logs import output\n"
        "for round in range(60):\n"
        "    with output.together():\n"
        "        for number in range(64):\n"
        "            output.info((%r * 299).encode())\n"
    )
    reading, writing = os.pipe()
    writers = [subprocess.Popen([sys.executable, "-c", script % letter], cwd=ROOT, stderr=writing) for letter in "ab"]
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        read = b""
        while part := pipe.read(1000):
            read += part
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert set(read.split(b"\n")) == {b"a" * 299, b"b" * 299, b""}
    assert read.count(b"\n") == 2 * 60 * 64


def test_lines_that_belong_together_are_written_together_whatever_happens_among_them(
    output: logs.Output, path: Path
) -> None:
    other = threading.Thread(target=output.info, args=(b"of another thread",))
    with contextlib.suppress(ZeroDivisionError), output.together():
        output.info(b"one")
        with output.together():
            output.info(b"two")
        other.start()
        other.join()
        assert path.read_text() == "of another thread\n"
        raise ZeroDivisionError
    assert path.read_text() == "of another thread\none\ntwo\n"
    output.info(b"after")
    assert path.read_text() == "of another thread\none\ntwo\nafter\n"


def test_the_lines_of_a_turn_of_an_event_loop_are_written_together(output: logs.Output, path: Path) -> None:
    async def log() -> None:
        with output.together_each_turn(asyncio.get_running_loop()):
            output.info(b"one")
            with output.together():
                output.info(b"two")
            assert path.read_text() == ""
            await asyncio.sleep(0)
            assert path.read_text() == "one\ntwo\n"
            await asyncio.to_thread(output.info, b"of another thread")
            assert path.read_text() == "one\ntwo\nof another thread\n"
            output.info(b"last")
        assert path.read_text() == "one\ntwo\nof another thread\nlast\n"
        output.info(b"after")

    asyncio.run(log())
    assert path.read_text() == "one\ntwo\nof another thread\nlast\nafter\n"
