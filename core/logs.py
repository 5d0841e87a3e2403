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
from collections.abc import Callable, Iterator
from contextvars import ContextVar
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


class Output:
    """Writes lines to a file: each at once, or several together where a thread asks for it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._of_thread = threading.local()

    def msg(self, line: bytes) -> None:
        """Write a line, or keep it for the others of this thread."""
        keep: Callable[[bytes], None] | None = getattr(self._of_thread, "keep", None)
        (keep or self._write)(line + b"\n")

    debug = info = warning = error = critical = msg  # what structlog calls

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write what this thread logs meanwhile at the end, with one system call."""
        lines: list[bytes] = []
        with self._keeping(lines.append, lambda: self._write(b"".join(lines))):
            yield

    @contextlib.contextmanager
    def together_each_turn(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Write what the thread of this event loop logs in one of its turns at the beginning of the next."""
        lines: list[bytes] = []

        def write() -> None:
            written = b"".join(lines)
            lines.clear()
            self._write(written)

        def keep(line: bytes) -> None:
            lines.append(line)
            if len(lines) == 1:
                loop.call_soon(write)

        with self._keeping(keep, write):
            yield

    @contextlib.contextmanager
    def _keeping(self, keep: Callable[[bytes], None], write: Callable[[], None]) -> Iterator[None]:
        before = getattr(self._of_thread, "keep", None)
        if before is not None:  # within another one, which writes these lines, too
            yield
            return
        self._of_thread.keep = keep
        try:
            yield
        finally:
            self._of_thread.keep = None
            write()

    def _write(self, lines: bytes) -> None:
        self._file.write(lines)
        self._file.flush()


output = Output(sys.stderr.buffer)


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
