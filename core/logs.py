"""Logging: one JSON line on stderr for each event, of ours and of the libraries.

stderr, because some commands print a result on stdout that a script captures.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from select import PIPE_BUF
from typing import Any, BinaryIO

import orjson
import structlog

# The id of the request that is served; each line that is logged meanwhile has it.
current_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def _render_bytes(event_dict: structlog.typing.EventDict) -> bytes:
    try:
        return orjson.dumps(event_dict, default=repr, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)
    except TypeError:
        # For lone surrogates and integers of more than 64 bits: writing a line must never fail.
        return json.dumps(event_dict, default=_text, skipkeys=True).encode()


def _render(_: Any, __: str, event_dict: structlog.typing.EventDict) -> str:
    return _render_bytes(event_dict).decode()


def _text(value: Any) -> str:
    """Return what orjson would write for what the standard library can't."""
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat().replace("+00:00", "Z")
    return repr(value)


def _add_request_id(_: Any, __: str, event_dict: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if (current := current_request_id.get()) is not None:
        event_dict.setdefault("request_id", current)
    return event_dict


def _render_line(logger: Any, name: str, event_dict: structlog.typing.EventDict) -> bytes:
    """Return the line.

    structlog has a processor for each of these steps.  Each call counts here, because every request and every attempt
    logs a line.
    """
    _add_request_id(logger, name, event_dict)
    event_dict["level"] = name
    event_dict["timestamp"] = datetime.datetime.now(datetime.UTC)  # which orjson writes faster than Python
    if "exc_info" in event_dict:
        event_dict = structlog.processors.format_exc_info(logger, name, event_dict)
    return _render_bytes(event_dict)


class _Kept:
    """Lines of a thread that are to be written together.  write: writes lines."""

    def __init__(self, write: Callable[[Sequence[bytes]], None]) -> None:
        self._write = write
        self._lines: list[bytes] = []

    def add(self, line: bytes) -> None:
        self._lines.append(line)

    def write(self) -> None:
        """Write what was added since the last time."""
        lines, self._lines = self._lines, []
        self._write(lines)


class _KeptForATurn(_Kept):
    """The same, written at the beginning of the event loop's next turn."""

    def __init__(self, write: Callable[[Sequence[bytes]], None], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(write)
        self._loop = loop

    def add(self, line: bytes) -> None:
        if not self._lines:
            self._loop.call_soon(self.write)
        super().add(line)


class Output:
    """Writes lines: each at once, or several together where a thread asks for it.

    file: returns where to.
    """

    def __init__(self, file: Callable[[], BinaryIO]) -> None:
        self._file = file
        self._of_thread = threading.local()

    def info(self, line: bytes) -> None:
        """Write a line, or keep it for the others of this thread."""
        kept: _Kept | None = getattr(self._of_thread, "kept", None)
        if kept is None:
            self._write([line])
        else:
            kept.add(line)

    def error(self, line: bytes) -> None:
        """Write a line now, behind those of this thread that were kept: the process may be about to end."""
        self.info(line)
        kept: _Kept | None = getattr(self._of_thread, "kept", None)
        if kept is not None:
            kept.write()

    # What structlog calls besides.
    debug = info
    warning = critical = error

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write what this thread logs meanwhile at the end, with few system calls."""
        with self._keeping(_Kept(self._write)):
            yield

    @contextlib.contextmanager
    def together_each_turn(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Write what the thread of this event loop logs in one of its turns at the beginning of the next."""
        with self._keeping(_KeptForATurn(self._write, loop)):
            yield

    @contextlib.contextmanager
    def _keeping(self, kept: _Kept) -> Iterator[None]:
        if getattr(self._of_thread, "kept", None) is not None:  # within another one, which writes these lines, too
            yield
            return
        self._of_thread.kept = kept
        try:
            yield
        finally:
            self._of_thread.kept = None
            kept.write()

    def _write(self, lines: Sequence[bytes]) -> None:
        """Write lines, as many with one system call as a pipe takes as a whole: processes may share one."""
        file = self._file()
        waiting: list[bytes] = []
        size = 0
        for line in lines:
            if waiting and size + len(line) >= PIPE_BUF:
                file.write(b"".join(waiting))
                file.flush()
                waiting, size = [], 0
            waiting += (line, b"\n")
            size += len(line) + 1
        if waiting:
            file.write(b"".join(waiting))
            file.flush()


output = Output(lambda: sys.stderr.buffer)


def configure_logging(level: str) -> None:
    """Send structlog's and the standard library's records of `level` and above to stderr as JSON.

    structlog's go to `output` as bytes.  The standard library's pass through structlog's processors in the handler of
    the root logger.  Then libraries that log each step get a higher level.
    """
    shared: list[structlog.typing.Processor] = [
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[_render_line],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _render,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quiet in (
        ("rq", "WARNING"),
        ("rq.worker", "WARNING"),
        ("rq.job", "WARNING"),
        ("asyncio", "ERROR"),
        ("httpx", "WARNING"),
        ("psycopg.pool", "ERROR"),
        ("django.request", "CRITICAL"),  # core.middleware logs each request, once
        ("axes", "WARNING"),
    ):
        logging.getLogger(name).setLevel(quiet)
