"""Where an event came from: the id of its request and the trace that it belongs to (W3C Trace Context, level 1)."""

from __future__ import annotations

import os
import re
import uuid
from dataclasses import dataclass

import uuid_utils

from core.tracing import current_span_id

MAX_TRACESTATE_CHARACTERS = 512
_MAX_MEMBERS = 32
# Members longer than this are the first to go where a tracestate is too long (§3.3.1.5).
_LONG_MEMBER = 128

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_MEMBER = re.compile(
    r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


@dataclass(frozen=True, slots=True)
class Origin:
    """What is stored with an event about the request that brought it.

    request_id: as `pack_request_id` packs it.  trace: `traceparent`, and after a space `tracestate` if there is one.
    """

    request_id: bytes | None = None
    trace: str | None = None


NO_ORIGIN = Origin()


def origin_of(request_id: str, traceparent: str | None, tracestate: str | None) -> Origin:
    """Return the origin that a request's headers give.  An invalid trace is ignored, as the standard says."""
    return Origin(pack_request_id(request_id), parse_trace(traceparent, tracestate) if traceparent else None)


def pack_request_id(request_id: str) -> bytes:
    """Return a request id in few bytes: a UUID, which most are, as 16 bytes, and any other as its characters."""
    if len(request_id) == 36:
        try:
            parsed = uuid_utils.UUID(request_id)
        except ValueError:
            pass
        else:
            if str(parsed) == request_id:
                return parsed.bytes
    packed = request_id.encode()
    return packed + b"\0" if len(packed) == 16 else packed


def unpack_request_id(packed: bytes | memoryview | None) -> str | None:
    """Return what `pack_request_id` was given; None for None."""
    if packed is None:
        return None
    raw = bytes(packed)
    return str(uuid.UUID(bytes=raw)) if len(raw) == 16 else raw.removesuffix(b"\0").decode("latin-1")


def parse_trace(traceparent: str, tracestate: str | None) -> str | None:
    """Return a request's trace as it is stored; None if its `traceparent` isn't valid.

    One of a later version is read as far as this version defines it.  A `tracestate` that isn't valid is left out.
    """
    found = _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    # This version defines one flag, "sampled".
    trace = f"00-{trace_id}-{span_id}-{int(flags, 16) & 1:02x}"
    state = _parse_state(tracestate) if tracestate else ""
    return f"{trace} {state}" if state else trace


def _parse_state(tracestate: str) -> str:
    """Return a valid `tracestate` without blanks, shortened to what is passed on; empty for one that isn't valid."""
    members = [member for part in tracestate.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MAX_MEMBERS or len(keys) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return ""
    if sum(len(member) + 1 for member in members) > MAX_TRACESTATE_CHARACTERS + 1:
        members = [member for member in members if len(member) <= _LONG_MEMBER]
    while sum(len(member) + 1 for member in members) > MAX_TRACESTATE_CHARACTERS + 1:
        members.pop()
    return ",".join(members)


def split_trace(trace: str | None) -> tuple[str | None, str | None]:
    """Return the `traceparent` and `tracestate` of a stored trace."""
    if not trace:
        return None, None
    traceparent, _, tracestate = trace.partition(" ")
    return traceparent, tracestate or None


def trace_headers(trace: str) -> list[tuple[str, str]]:
    """Return the headers that pass a stored trace on, with the id of the current span or a new one."""
    traceparent, tracestate = split_trace(trace)
    version, trace_id, _, flags = (traceparent or "").split("-")
    span_id = current_span_id.get() or _NO_SPAN
    while span_id == _NO_SPAN:
        span_id = os.urandom(8).hex()
    headers = [("traceparent", f"{version}-{trace_id}-{span_id}-{flags}")]
    if tracestate:
        headers.append(("tracestate", tracestate))
    return headers
