"""From the bytes of a request to events: validation without losing a byte of `data`.

orjson says whether the JSON is valid and what the small fields are; msgspec finds the bytes of `data`
as they were sent, so that large integers, key order and number forms stay what the producer wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from core.json_body import check_json, parse_json
from core.problems import Problem, invalid

MAX_TYPE_CHARACTERS = 255
MAX_DEDUP_ID_CHARACTERS = 255

# Standard Webhooks: dot-delimited [a-zA-Z0-9_].
EVENT_TYPE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_KNOWN = {"type", "data", "payload", "dedup_id"}


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A valid event that isn't stored yet.  data: its JSON text."""

    type: str
    data: str
    dedup_id: str | None

    def fingerprint(self) -> bytes:
        """Return a SHA-256 that is the same for the same type and JSON value.

        Blank space and the order of members don't matter; a number counts by its digits, so that
        two integers that a float can't tell apart stay different.
        """
        value = json.loads(self.data, parse_int=_digits, parse_float=_digits)
        canonical = json.dumps([self.type, value], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).digest()


def _digits(text: str) -> list[str]:
    # U+0000 can't be in a payload, so no payload looks like a marked number.
    return ["\x00", text]


def event_type_error(value: Any) -> str | None:
    """Return what is wrong with an event type, or None."""
    if not isinstance(value, str):
        return "must be a string"
    if not value:
        return "must not be empty"
    if len(value) > MAX_TYPE_CHARACTERS:
        return f"must have at most {MAX_TYPE_CHARACTERS} characters"
    if not EVENT_TYPE.fullmatch(value):
        return "must be words of letters, digits and _ with dots between them, such as order.created"
    return None


def _dedup_id_error(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if not 1 <= len(value) <= MAX_DEDUP_ID_CHARACTERS:
        return f"must have 1 to {MAX_DEDUP_ID_CHARACTERS} characters"
    return None


def _errors(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [("", "must be a JSON object")]
    errors = [
        ("/" + name.replace("~", "~0").replace("/", "~1"), "is not a known field")
        for name in value
        if name not in _KNOWN
    ]
    if "type" not in value:
        errors.append(("/type", "is required"))
    elif reason := event_type_error(value["type"]):
        errors.append(("/type", reason))
    if "data" in value and "payload" in value:
        errors.append(("/payload", "is another name for data; give one of the two"))
    elif "data" not in value and "payload" not in value:
        errors.append(("/data", "is required"))
    if value.get("dedup_id") is not None and (reason := _dedup_id_error(value["dedup_id"])):
        errors.append(("/dedup_id", reason))
    return errors


def _build(raw: bytes | msgspec.Raw, value: dict[str, Any]) -> NewEvent:
    members = _members.decode(raw)
    data = bytes(members["data" if "data" in value else "payload"]).decode()
    return NewEvent(type=value["type"], data=data, dedup_id=value.get("dedup_id"))


def parse_event(body: bytes) -> NewEvent:
    """Return the event in a request's body.  Raises Problem 400 that names each wrong field."""
    value = parse_json(body)
    errors = _errors(value)
    if errors:
        raise invalid(errors, "The event is not valid.")
    return _build(body, value)


def parse_batch(
    body: bytes, *, ndjson: bool, max_events: int, max_event_bytes: int
) -> list[NewEvent | list[tuple[str, str]]]:
    """Return for each item of a batch the event, or the (pointer, reason) pairs of what is wrong with it.

    ndjson: one JSON object a line (blank lines are skipped), else one JSON array.  Raises Problem
    400 when the whole can't be read, 413 when it holds more than `max_events`.
    """
    items: list[bytes]
    if ndjson:
        items = [line for line in body.split(b"\n") if line.strip()]
    else:
        value = _load(body)
        if not isinstance(value, list):
            raise invalid([("", "must be a JSON array of events")])
        try:
            items = [bytes(item) for item in _items.decode(body)]
        except RecursionError:
            raise invalid([("", "is nested too deep")]) from None
    if not items:
        raise invalid([("", "must hold at least one event")])
    if len(items) > max_events:
        raise Problem(
            "too_many_events",
            f"The batch holds {len(items)} events; the limit is {max_events}.",
            extra={"limit_events": max_events},
        )
    return [_parse_item(item, max_event_bytes) for item in items]


def _load(body: bytes) -> Any:
    if not body:
        raise Problem("invalid_json", "The body is empty.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem("invalid_json", f"The body is not valid JSON: {error}.") from None


def _parse_item(item: bytes, max_event_bytes: int) -> NewEvent | list[tuple[str, str]]:
    if len(item) > max_event_bytes:
        return [("", f"is over the limit of {max_event_bytes} bytes for one event")]
    try:
        value = orjson.loads(item)
    except orjson.JSONDecodeError as error:
        return [("", f"is not valid JSON: {error}")]
    try:
        check_json(item, value)
    except Problem as problem:
        return [(error["pointer"], error["detail"]) for error in problem.errors]
    return _errors(value) or _build(item, value)
