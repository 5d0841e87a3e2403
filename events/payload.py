"""From the bytes of a request to events: validation without losing a byte of `data`.

orjson validates the JSON and parses the small fields. msgspec finds the bytes of `data` as they were sent, so that
large integers, the order of keys, and the form of numbers stay as the producer wrote them.  Valid JSON that orjson
refuses (`1e400`, a lone surrogate in an escape) goes through `core.json_text`, which is slower.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from core import json_text
from core.json_body import depth_error, encoding_error
from core.problems import Problem, invalid
from core.suggestions import unknown_field
from events.channels import channels_error

MAX_TYPE_CHARACTERS = 255
MAX_DEDUP_ID_CHARACTERS = 255

# Standard Webhooks has dot-delimited [a-zA-Z0-9_]; CloudEvents and others also use `-`, `/`, and `:`.
EVENT_TYPE = re.compile(r"[A-Za-z0-9_/:-]+(\.[A-Za-z0-9_/:-]+)*")

# What subscriptions and lists take: a type, a prefix with `.*`, or EVERYTHING.
PATTERN = re.compile(rf"{EVENT_TYPE.pattern}(\.\*)?")
EVERYTHING = "*"

# Types that begin like this are operational events, with which the system reports on an organization's endpoints and
# keys.  Producers can't send events of such a type, and only operational subscriptions get them.
OPERATIONAL_PREFIX = "triggers."

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_SURROGATE = re.compile("[\ud800-\udfff]")
_KNOWN = ("type", "data", "payload", "dedup_id", "channels", "ordering_key")
# Other names that people use for them by mistake.
_HINTS = {
    **dict.fromkeys(("event", "event_type", "eventType", "name", "topic"), "type"),
    **dict.fromkeys(("body", "content", "message", "event_data"), "data"),
    **dict.fromkeys(("id", "event_id", "idempotency_key", "idempotencyKey", "deduplication_id"), "dedup_id"),
    **dict.fromkeys(("orderingKey", "partition_key", "partitionKey", "key"), "ordering_key"),
    "channel": "channels",
}


def matches(pattern: str, event_type: str) -> bool:
    """Return whether a pattern matches a type: `order.*` matches `order.created`, but not `order`."""
    if pattern == EVERYTHING:
        return True
    return event_type.startswith(pattern[:-1]) if pattern.endswith(".*") else event_type == pattern


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A valid event that isn't stored yet.  data: its JSON text.

    cloudevent: what `events.cloudevents` keeps of a CloudEvent.  trace: one that came with the event and not with its
    request, as `events.origin` stores it.
    """

    type: str
    data: str
    dedup_id: str | None
    cloudevent: str | None = None
    trace: str | None = None
    channels: tuple[str, ...] = ()
    ordering_key: str | None = None

    def fingerprint(self) -> bytes:
        """Return a SHA-256 that is the same for the same type and JSON value.

        Blank space and the order of members don't matter; numbers are compared by their digits, so that two integers
        that are the same as floats stay different.  The order of channels doesn't matter, either.
        """
        if "\\u0000" in self.data:
            value = json.loads(self.data, parse_int=_Digits, parse_float=_Digits)
            # No JSON begins like this, so no event of the other kind has the same canonical text.
            canonical = f"exact {json.dumps(self.type)} {_canonical(value)}"
        else:
            value = json.loads(self.data, parse_int=_marked, parse_float=_marked)
            canonical = json.dumps([self.type, value], sort_keys=True, separators=(",", ":"))
        if self.channels:
            canonical += f" channels {','.join(sorted(self.channels))}"
        if self.ordering_key is not None:
            canonical += f" ordering_key {json.dumps(self.ordering_key)}"
        return hashlib.sha256(canonical.encode()).digest()


def _marked(digits: str) -> list[str]:
    # Only for payloads without U+0000: there, no array looks like a marked number.
    return ["\x00", digits]


class _Digits:
    """A number, by its digits."""

    def __init__(self, digits: str) -> None:
        self.digits = digits


def _canonical(value: Any) -> str:
    """Return one text for each JSON value.  The nesting is bounded by MAX_JSON_DEPTH."""
    if isinstance(value, _Digits):
        return value.digits
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_canonical(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_canonical(item) for item in value) + "]"
    return json.dumps(value)


def event_type_error(value: Any) -> str | None:
    """Return what is wrong with an event type, or None."""
    if not isinstance(value, str):
        return "must be a string"
    if not value:
        return "must not be empty"
    if len(value) > MAX_TYPE_CHARACTERS:
        return f"must have at most {MAX_TYPE_CHARACTERS} characters"
    if not EVENT_TYPE.fullmatch(value):
        return "must be words of letters, digits, _, -, /, and : with dots between them, such as order.created"
    if value.startswith(OPERATIONAL_PREFIX):
        return f"must not begin with {OPERATIONAL_PREFIX}, which is for operational events"
    return None


def pattern_error(pattern: object) -> str | None:
    """Return what is wrong with an event type pattern, or None."""
    if not isinstance(pattern, str):
        return "must be a string"
    if pattern == EVERYTHING:
        return None
    if len(pattern) > 257 or not PATTERN.fullmatch(pattern):
        return "must be an event type (order.created), a prefix (order.*) or *"
    return None


def _name_error(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if not 1 <= len(value) <= MAX_DEDUP_ID_CHARACTERS:
        return f"must have 1 to {MAX_DEDUP_ID_CHARACTERS} characters"
    if "\x00" in value:
        return "contains the character U+0000, which can't be stored"
    if _SURROGATE.search(value):
        return "contains half of a surrogate pair, which is no character"
    return None


def pointer_to(name: str) -> str:
    """Return the JSON pointer to a member, with lone surrogates spelled out."""
    shown = _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", name)
    return "/" + shown.replace("~", "~0").replace("/", "~1")


def _errors(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [("", "must be a JSON object")]
    errors = [(pointer_to(name), unknown_field(name, _KNOWN, _HINTS)) for name in value if name not in _KNOWN]
    if "type" not in value:
        errors.append(("/type", "is required"))
    elif reason := event_type_error(value["type"]):
        errors.append(("/type", reason))
    if "data" in value and "payload" in value:
        errors.append(("/payload", "is another name for data; give one of the two"))
    elif "data" not in value and "payload" not in value:
        errors.append(("/data", "is required"))
    if value.get("dedup_id") is not None and (reason := _name_error(value["dedup_id"])):
        errors.append(("/dedup_id", reason))
    if value.get("ordering_key") is not None and (reason := _name_error(value["ordering_key"])):
        errors.append(("/ordering_key", reason))
    if value.get("channels") is not None and (wrong := channels_error(value["channels"])) is not None:
        position, reason = wrong
        errors.append(("/channels" if position is None else f"/channels/{position}", reason))
    return errors


@dataclass(frozen=True, slots=True)
class Parsed:
    """A JSON text and its value.  by_orjson: orjson took it; else numbers in `value` are 0."""

    text: bytes
    value: Any
    by_orjson: bool

    def member(self, name: str) -> str:
        """Return the text of a member, exactly as it was sent."""
        if self.by_orjson:
            return bytes(_members.decode(self.text)[name]).decode()
        return json_text.members(self.text)[name]

    def items(self) -> list[bytes]:
        """Return the text of each item, exactly as it was sent."""
        if self.by_orjson:
            return [bytes(item) for item in _items.decode(self.text)]
        return json_text.items(self.text)


class NotJson(ValueError):
    """A text isn't JSON, or nested far too deep; the message says which."""


def parse(text: bytes) -> Parsed:
    """Parse what RFC 8259 allows.  Raises NotJson."""
    try:
        return Parsed(text, orjson.loads(text), True)
    except orjson.JSONDecodeError:
        if reason := encoding_error(text):
            raise NotJson(reason) from None
    try:
        return Parsed(text, json_text.parse(text), False)
    except ValueError as error:
        raise NotJson(f"is not valid JSON: {error}") from None
    except RecursionError:
        raise NotJson("is nested too deep") from None


def _build(parsed: Parsed) -> NewEvent:
    value = parsed.value
    data = parsed.member("data" if "data" in value else "payload")
    return NewEvent(
        type=value["type"],
        data=data,
        dedup_id=value.get("dedup_id"),
        channels=tuple(dict.fromkeys(value.get("channels") or ())),
        ordering_key=value.get("ordering_key"),
    )


def load(body: bytes, expected: str) -> Parsed:
    """Parse a whole body.  expected: what it should be.  Raises Problem 400."""
    if not body:
        raise Problem("invalid_json", f"The body is empty; send {expected}.")
    try:
        return parse(body)
    except NotJson as error:
        raise Problem("invalid_json", f"The body {error}.") from None


def parse_event(body: bytes) -> NewEvent:
    """Return the event in a request's body.  Raises Problem 400 that names each wrong field."""
    parsed = load(body, "a JSON object")
    if reason := depth_error(body, parsed.value):
        raise invalid([("", reason)])
    errors = _errors(parsed.value)
    if isinstance(parsed.value, list):
        errors = [("", "must be a JSON object: `POST /api/events/batch` takes an array of events")]
    if errors:
        raise invalid(errors, "The event is not valid.")
    return _build(parsed)


def parse_with_options(body: bytes, options: Collection[str], instead: str) -> tuple[NewEvent | None, dict[str, Any]]:
    """Return the event in a request's body, and the members beside it that are named in `options`.

    instead: the option that takes the event's place.  Raises Problem 400 that names each wrong field.
    """
    parsed = load(body, "a JSON object")
    if reason := depth_error(body, parsed.value):
        raise invalid([("", reason)])
    if not isinstance(parsed.value, dict):
        raise invalid([("", "must be a JSON object")])
    given = {name: parsed.value[name] for name in options if name in parsed.value}
    # JSON has escapes for what isn't valid text, and an error about a value may repeat it.
    errors = [
        (pointer_to(name), "contains half of a surrogate pair, which is no character")
        for name, value in given.items()
        if _SURROGATE.search(json.dumps(value, ensure_ascii=False))
    ]
    members = {name: value for name, value in parsed.value.items() if name not in options}
    if instead in given:
        errors += [(pointer_to(name), f"can't be given together with {instead}") for name in members]
    else:
        errors += _errors(members)
    if errors:
        raise invalid(errors)
    return (None if instead in given else _build(parsed)), given


def parse_batch(
    body: bytes,
    *,
    ndjson: bool,
    max_events: int,
    max_event_bytes: int,
    parse_item: Callable[[bytes, int], NewEvent | list[tuple[str, str]]] | None = None,
) -> list[NewEvent | list[tuple[str, str]]]:
    """Return for each item of a batch the event, or the (pointer, reason) pairs of what is wrong with it.

    parse_item: for events of another shape, of which there may also be none. ndjson: one JSON object a line (blank
    lines are skipped), else one JSON array.  Raises Problem 400 when the body can't be read as a whole, 413 when it has
    more than `max_events`.
    """
    items: list[bytes]
    if ndjson:
        items = [line for line in body.split(b"\n") if line.strip()]
    else:
        parsed = load(body, "a JSON array of events")
        if not isinstance(parsed.value, list):
            raise invalid([("", "must be a JSON array of events")])
        try:
            items = parsed.items()
        except RecursionError:
            raise invalid([("", "is nested too deep")]) from None
    if not items and parse_item is None:
        raise invalid([("", "must hold at least one event")])
    if len(items) > max_events:
        raise Problem(
            "too_many_events",
            f"The batch holds {len(items)} events; the limit is {max_events}.",
            extra={"limit_events": max_events},
        )
    return [(parse_item or _parse_item)(item, max_event_bytes) for item in items]


def _parse_item(item: bytes, max_event_bytes: int) -> NewEvent | list[tuple[str, str]]:
    if len(item) > max_event_bytes:
        return [("", f"is over the limit of {max_event_bytes} bytes for one event")]
    try:
        parsed = parse(item)
    except NotJson as error:
        return [("", str(error))]
    if reason := depth_error(item, parsed.value):
        return [("", reason)]
    return _errors(parsed.value) or _build(parsed)
