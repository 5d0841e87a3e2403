"""CloudEvents 1.0 in: structured, batched, and binary mode (HTTP binding 1.0.2, JSON format 1.0.2) become events.

`type` and the data are ours, too.  All other attributes are kept as they came, as a JSON text beside the event
(`NewEvent.cloudevent`), from which `webhooks.destinations.formats` makes the CloudEvent again.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import orjson

from core.json_body import depth_error
from core.problems import Problem, invalid
from events.origin import parse_trace
from events.payload import (
    MAX_DEDUP_ID_CHARACTERS,
    NewEvent,
    NotJson,
    Parsed,
    event_type_error,
    load,
    parse,
    pointer_to,
)

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
# Media types that begin like this determine the mode of the event, whatever the headers are.
FAMILY = "application/cloudevents"

PREFIX = "ce-"
# A request with any of these is in binary mode.
MARKS = frozenset({"ce-specversion", "ce-id", "ce-source", "ce-type"})

MAX_ATTRIBUTES_BYTES = 8192
# Under this name, `NewEvent.cloudevent` has the kind of the data; no attribute can have this name.
DATA = "_data"
NO_DATA, BASE64 = "none", "base64"

JSON_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/(json|[a-z0-9!#$&^_.+-]+\+json)\s*(;.*)?", re.I)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+([ \t]*;[ \t]*[\x21-\x7e \t]*)?")
_NAME = re.compile(r"[a-z0-9]+")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_INTEGER = re.compile(r"-?\d{1,10}")
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

Errors = list[tuple[str, str]]


def _text_error(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if not value:
        return "must not be empty"
    if _NO_TEXT.search(value):
        return "contains a control character or one that isn't a character"
    return None


def _uri_error(value: Any, *, absolute: bool = False) -> str | None:
    if reason := _text_error(value):
        return reason
    try:
        parts = urlsplit(value)
    except ValueError:
        return "must be a URI"
    if re.search(r"[\s<>\"{}|\\^`]", value) or (absolute and not parts.scheme):
        return "must be an absolute URI" if absolute else "must be a URI or a relative reference"
    return None


def _schema_uri_error(value: Any) -> str | None:
    return _uri_error(value, absolute=True)


def _time_error(value: Any) -> str | None:
    if reason := _text_error(value):
        return reason
    try:
        if not _TIME.fullmatch(value):
            raise ValueError
        datetime.datetime.fromisoformat(value.upper())
    except ValueError:
        return "must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z"
    return None


def _version_error(value: Any) -> str | None:
    return None if value == "1.0" else 'must be "1.0"; no other version is supported'


def _media_type_error(value: Any) -> str | None:
    if reason := _text_error(value):
        return reason
    return None if _MEDIA_TYPE.fullmatch(value) else "must be a media type, such as application/json"


_REQUIRED: dict[str, Callable[[Any], str | None]] = {
    "specversion": _version_error,
    "id": _text_error,
    "source": _uri_error,
    "type": event_type_error,
}
_OPTIONAL: dict[str, Callable[[Any], str | None]] = {
    "subject": _text_error,
    "time": _time_error,
    "datacontenttype": _media_type_error,
    "dataschema": _schema_uri_error,
}


def _extension_error(name: str, value: Any) -> str | None:
    if not _NAME.fullmatch(name):
        return "is no name of an attribute: those consist of lowercase letters and digits"
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if -(2**31) <= value < 2**31 else "must be an integer of 32 bits"
    if not isinstance(value, str):
        return "must be a string, a boolean, or an integer"
    return "contains a control character or one that isn't a character" if _NO_TEXT.search(value) else None


def _errors(attributes: Mapping[str, Any], point: Callable[[str], str]) -> Errors:
    """Return what is wrong with the attributes.  point: how an error points to one."""
    errors = []
    for name, check in _REQUIRED.items():
        reason = check(attributes[name]) if name in attributes else "is required"
        if reason:
            errors.append((point(name), reason))
    for name, value in attributes.items():
        if name in _REQUIRED:
            continue
        optional = _OPTIONAL.get(name)
        if reason := optional(value) if optional else _extension_error(name, value):
            errors.append((point(name), reason))
    return errors


def _build(attributes: Mapping[str, Any], data: str, kind: str) -> NewEvent:
    """Return the event.  kind: of the data: empty for JSON or text.  Raises ValueError for attributes too large."""
    kept = {name: value for name, value in attributes.items() if name not in {"specversion", "type"}}
    text = orjson.dumps({**kept, DATA: kind} if kind else kept)
    if len(text) > MAX_ATTRIBUTES_BYTES:
        raise ValueError(f"has more than {MAX_ATTRIBUTES_BYTES} bytes of attributes")
    dedup_id = f"{attributes['source']} {attributes['id']}"
    if len(dedup_id) > MAX_DEDUP_ID_CHARACTERS:
        dedup_id = "sha256:" + hashlib.sha256(dedup_id.encode()).hexdigest()
    traceparent, tracestate = attributes.get("traceparent"), attributes.get("tracestate")
    trace = None
    if isinstance(traceparent, str):
        trace = parse_trace(traceparent, tracestate if isinstance(tracestate, str) else None)
    return NewEvent(attributes["type"], data, dedup_id, text.decode(), trace, ordering_key=_ordering_key(attributes))


def _ordering_key(attributes: Mapping[str, Any]) -> str | None:
    """Return the key that the partitioning extension gives, as short as one may be."""
    key = attributes.get("partitionkey")
    if not isinstance(key, str) or not key:
        return None
    return key if len(key) <= MAX_DEDUP_ID_CHARACTERS else "sha256:" + hashlib.sha256(key.encode()).hexdigest()


# --- structured and batched -----------------------------------------------------------------------


def parse_structured(body: bytes) -> NewEvent:
    """Return the event in a body of STRUCTURED.  Raises Problem 400 that names each wrong attribute."""
    parsed = load(body, "a CloudEvent")
    event = _from_parsed(body, parsed)
    if not isinstance(event, NewEvent):
        raise invalid(event, "The CloudEvent is not valid. Nothing was stored.")
    return event


def parse_item(item: bytes, max_event_bytes: int) -> NewEvent | Errors:
    """Return the event in an item of a batch, or what is wrong with it."""
    if len(item) > max_event_bytes:
        return [("", f"is over the limit of {max_event_bytes} bytes for one event")]
    try:
        return _from_parsed(item, parse(item))
    except NotJson as error:
        return [("", str(error))]


def _from_parsed(text: bytes, parsed: Parsed) -> NewEvent | Errors:
    if reason := depth_error(text, parsed.value):
        return [("", reason)]
    if not isinstance(parsed.value, dict):
        return [("", "must be a JSON object")]
    attributes = {
        name: value
        for name, value in parsed.value.items()
        if value is not None and name not in {"data", "data_base64"}  # null means absent
    }
    errors: Errors = []
    if not parsed.by_orjson:  # then numbers are 0
        for name, value in attributes.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                digits = parsed.member(name)
                attributes[name] = int(digits) if _INTEGER.fullmatch(digits) else 0.0
    errors = _errors(attributes, pointer_to)
    has_data, encoded = "data" in parsed.value, parsed.value.get("data_base64")
    if has_data and encoded is not None:
        errors.append(("/data_base64", "can't be given together with data"))
    elif encoded is not None and (reason := _base64_error(encoded)):
        errors.append(("/data_base64", reason))
    if errors:
        return errors
    try:
        if encoded is not None:
            return _build(attributes, json.dumps(encoded), BASE64)
        return _build(attributes, parsed.member("data") if has_data else "null", "" if has_data else NO_DATA)
    except ValueError as error:
        return [("", str(error))]


def _base64_error(value: Any) -> str | None:
    try:
        base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return "must be a string in Base64"
    return None


# --- binary ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BinaryHead:
    """What the headers of a request in binary mode say.  attributes: by name, as they came, one character a byte."""

    attributes: Mapping[str, str]
    content_type: str

    def fingerprint(self) -> bytes:
        """Return what belongs to the content of the request beside the body."""
        return json.dumps([sorted(self.attributes.items()), self.content_type]).encode()


def binary_head(headers: Mapping[str, str], content_type: str) -> BinaryHead | None:
    """Return the head of a request in binary mode; None for one that isn't.

    headers: by lowercase name.  Raises Problem 415 for a media type of CloudEvents other than JSON.
    """
    if MARKS.isdisjoint(headers):
        return None
    if content_type.lower().startswith(FAMILY):
        return None  # the mode that the media type names
    found = {name[len(PREFIX) :]: value for name, value in headers.items() if name.startswith(PREFIX)}
    return BinaryHead(found, content_type.strip())


def parse_binary(head: BinaryHead, body: bytes) -> NewEvent:
    """Return the event of a request in binary mode.  Raises Problem 400 that names each wrong header."""
    errors: Errors = []
    attributes: dict[str, Any] = {}
    for name, value in head.attributes.items():
        try:
            attributes[name] = _decode(value)
        except ValueError:
            errors.append((_header(name), "is not UTF-8 when its percent-encoding is decoded"))
            attributes[name] = None
    if "datacontenttype" in attributes:
        errors.append((_header("datacontenttype"), "must be given as Content-Type"))
    if "data" in attributes:
        errors.append((_header("data"), "must be the body"))
    readable = {
        name: value
        for name, value in attributes.items()
        if value is not None and name not in {"datacontenttype", "data"}
    }
    unreadable = attributes.keys() - readable.keys()
    errors += [error for error in _errors(readable, _header) if error[0] not in {_header(one) for one in unreadable}]
    if head.content_type:
        readable["datacontenttype"] = head.content_type
        if reason := _media_type_error(head.content_type):
            errors.append(("#Content-Type", reason))
    if errors:
        raise invalid(errors, "The CloudEvent is not valid. Nothing was stored.")
    try:
        return _build(readable, *_binary_data(head.content_type, body))
    except ValueError as error:
        raise invalid([("", str(error))]) from None


def _header(name: str) -> str:
    return f"#{PREFIX}{name}"


def _decode(value: str) -> str:
    """Return the text of a header: unquoted, percent-decoded once, and read as UTF-8.  Raises ValueError."""
    if len(value) >= 2 and value.startswith('"') and value.endswith('"'):
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return unquote_to_bytes(value.encode("latin-1")).decode()


def _binary_data(content_type: str, body: bytes) -> tuple[str, str]:
    """Return the data as JSON text, and its kind.  Raises Problem 400 for a body that doesn't match its media type."""
    if not body:
        return "null", NO_DATA
    if not content_type or JSON_TYPE.fullmatch(content_type):
        try:
            parsed = load(body, "the data as JSON")
        except Problem:
            if content_type:
                raise
            raise invalid([("#Content-Type", "is required for data that isn't JSON")]) from None
        if reason := depth_error(body, parsed.value):
            raise invalid([("", reason)])
        return body.decode().strip(" \t\r\n"), ""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return json.dumps(base64.b64encode(body).decode()), BASE64
    return json.dumps(text, ensure_ascii=False), ""
