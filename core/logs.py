"""Logging: one JSON line on stderr for each event, of ours and of the libraries.

stderr, because some commands print a result on stdout that a script captures.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import uuid
from typing import Any

import orjson
import structlog


def _render_bytes(_: Any, __: str, event_dict: structlog.typing.EventDict) -> bytes:
    try:
        return orjson.dumps(event_dict, default=repr, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)
    except TypeError:
        # For lone surrogates and integers of more than 64 bits: writing a line must never fail.
        return json.dumps(event_dict, default=_text, skipkeys=True).encode()


def _render(logger: Any, name: str, event_dict: structlog.typing.EventDict) -> str:
    return _render_bytes(logger, name, event_dict).decode()


def _text(value: Any) -> str:
    """Return what orjson would write for what the standard library can't."""
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat().replace("+00:00", "Z")
    return repr(value)


def _stamp(_: Any, __: str, event_dict: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event_dict["timestamp"] = datetime.datetime.now(datetime.UTC)  # which orjson writes faster than Python
    return event_dict


def configure_logging(level: str) -> None:
    """Send structlog's and the standard library's records of `level` and above to stderr as JSON.

    structlog's go straight to stderr as bytes.  The standard library's pass through structlog's processors in the
    handler of the root logger.  Then libraries that log each step get a higher level.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _stamp,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _render_bytes,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        logger_factory=structlog.BytesLoggerFactory(file=sys.stderr.buffer),
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
