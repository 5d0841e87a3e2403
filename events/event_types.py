"""The catalog of event types: how it is changed, and whether an event fits it.

An organization takes any event, only those of a type in its catalog, or only those whose data fits their type's schema
(`orgs.models.Strictness`).  `event_errors` decides, for the front door and for Django's views.  What a process
remembers of a catalog is valid for one `catalog_version`, which changes with the catalog and comes with the caller's
key.  The statement with which the front door stores events checks the version again.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from cachetools import LRUCache
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from core.problems import invalid
from events.models import EventType
from events.openapi_import import ImportedType
from events.payload import NewEvent
from events.schemas import SchemaError, Validator
from orgs.keys import Caller
from orgs.models import Organization, Strictness

FieldErrors = list[tuple[str, str]]

# How much of all catalogs a process remembers, in bytes of schemas.  A compiled one takes several times as much memory.
REMEMBERED_BYTES = 8_000_000


class TooManyEventTypes(Exception):
    """The organization has MAX_EVENT_TYPES already."""


class NameTaken(Exception):
    """The organization has an event type with this name."""


def of_organization(organization_id: uuid.UUID) -> QuerySet[EventType]:
    """Return the organization's event types."""
    return EventType.objects.filter(organization_id=organization_id)


def _touch(organization_id: uuid.UUID) -> None:
    """Mark the catalog as changed, in the transaction of the change; this also serializes changes."""
    Organization.objects.filter(pk=organization_id).update(catalog_version=F("catalog_version") + 1)


def set_strictness(organization_id: uuid.UUID, strictness: str) -> None:
    """Set which events the organization takes."""
    Organization.objects.filter(pk=organization_id).update(
        event_type_strictness=strictness, catalog_version=F("catalog_version") + 1
    )


def is_full(organization_id: uuid.UUID) -> bool:
    """Return whether the organization has as many types as it may."""
    return of_organization(organization_id).count() >= int(settings.MAX_EVENT_TYPES)


def create(organization_id: uuid.UUID, *, name: str, archived: bool = False, **fields: Any) -> EventType:
    """Add a type.  Raises NameTaken or TooManyEventTypes."""
    with transaction.atomic():
        _touch(organization_id)
        if is_full(organization_id):
            raise TooManyEventTypes
        try:
            with transaction.atomic():
                row = EventType.objects.create(
                    organization_id=organization_id, name=name, archived_at=Now() if archived else None, **fields
                )
        except IntegrityError:
            raise NameTaken from None
    row.refresh_from_db()
    return row


def change(row: EventType, changes: Mapping[str, Any]) -> None:
    """Set fields by name; `archived` is true or false.  Another schema gets the next version."""
    fields = dict(changes)
    with transaction.atomic():
        _touch(row.organization_id)
        current = EventType.objects.get(pk=row.pk)
        if "archived" in fields and fields["archived"] is not current.archived:
            fields["archived_at"] = Now() if fields["archived"] else None
        fields.pop("archived", None)
        if "schema" in fields and fields["schema"] != current.schema:
            fields["version"] = current.version + 1
        EventType.objects.filter(pk=row.pk).update(**fields, updated_at=Now())
    row.refresh_from_db()


def delete(row: EventType) -> None:
    """Remove a type from the catalog; events of it stay as they are."""
    with transaction.atomic():
        _touch(row.organization_id)
        EventType.objects.filter(pk=row.pk).delete()


@dataclass(frozen=True, slots=True)
class Imported:
    """A type in the catalog after an import.  status: `created`, `changed`, or `unchanged`."""

    row: EventType
    status: str


def import_types(organization_id: uuid.UUID, wanted: Sequence[ImportedType]) -> list[Imported]:
    """Create or change each of these types, in the caller's transaction; return each with what was done.

    Raises TooManyEventTypes.
    """
    _touch(organization_id)
    existing = {row.name: row for row in of_organization(organization_id)}
    done = []
    for one in wanted:
        fields = {"description": one.description, "examples": one.examples, "schema": one.schema}
        row = existing.get(one.name)
        if row is None:
            done.append(Imported(EventType(organization_id=organization_id, name=one.name, **fields), "created"))
        elif all(_is_same(getattr(row, name), value) for name, value in fields.items()):
            done.append(Imported(row, "unchanged"))
        else:
            row.version += not _is_same(row.schema, one.schema)
            for name, value in (fields | {"updated_at": Now()}).items():
                setattr(row, name, value)
            done.append(Imported(row, "changed"))
    created = [one.row for one in done if one.status == "created"]
    if created and len(existing) + len(created) > int(settings.MAX_EVENT_TYPES):
        raise TooManyEventTypes
    EventType.objects.bulk_create(created)
    EventType.objects.bulk_update(
        [one.row for one in done if one.status == "changed"],
        ["description", "examples", "schema", "version", "updated_at"],
    )
    return done


def _is_same(stored: Any, given: Any) -> bool:
    """Return whether two JSON values are the same; for Python, `true` equals 1."""
    return json.dumps(stored, sort_keys=True) == json.dumps(given, sort_keys=True)


# --- checking events ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownType:
    """A type in a catalog.  validator: None without a schema.  size: about how many bytes it takes to remember."""

    is_archived: bool
    validator: Validator | None
    size: int


def event_errors(strictness: str, known: KnownType | None, event: NewEvent) -> FieldErrors:
    """Return why an organization doesn't take an event, as JSON pointers into it and reasons; empty if it does.

    known: the catalog's entry for the event's type; None if there is none.
    """
    if strictness == Strictness.FREE:
        return []
    if known is None:
        return [("/type", "is not one of the organization's event types; GET /api/event-types lists them")]
    if known.is_archived:
        return [("/type", "is an event type that is archived")]
    if strictness == Strictness.KNOWN or known.validator is None:
        return []
    return [(f"/data{pointer}", reason) for pointer, reason in known.validator.errors(event.data)]


_Key = tuple[uuid.UUID, int, str]


class Catalog:
    """What this process remembers of the organizations' event types."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._types: LRUCache[_Key, KnownType | None] = LRUCache(
            REMEMBERED_BYTES, getsizeof=lambda known: known.size if known is not None else 300
        )

    def missing(self, caller: Caller, events: Iterable[NewEvent]) -> set[str]:
        """Return the types of the events that have to be loaded before they can be checked."""
        with self._lock:
            return {
                event.type
                for event in events
                if (caller.organization_id, caller.catalog_version, event.type) not in self._types
            }

    def load(self, caller: Caller, names: Collection[str]) -> dict[str, KnownType | None]:
        """Read types from the database, compile their schemas, and remember and return them."""
        found: dict[str, KnownType | None] = dict.fromkeys(names)
        rows = of_organization(caller.organization_id).filter(name__in=list(names))
        for name, schema, archived_at in rows.values_list("name", "schema", "archived_at"):
            size = 300 + (len(orjson.dumps(schema)) if schema is not None else 0)
            found[name] = KnownType(archived_at is not None, _compile(schema), size)
        with self._lock:
            for name, known in found.items():
                self._types[caller.organization_id, caller.catalog_version, name] = known
        return found

    def check(self, caller: Caller, events: Sequence[NewEvent]) -> list[FieldErrors]:
        """Return what is wrong with each event; reads types that aren't remembered."""
        loaded = self.load(caller, missing) if (missing := self.missing(caller, events)) else {}
        return [event_errors(caller.strictness, self._known(caller, event.type, loaded), event) for event in events]

    def _known(self, caller: Caller, name: str, loaded: Mapping[str, KnownType | None]) -> KnownType | None:
        if name in loaded:
            return loaded[name]
        with self._lock:
            key = caller.organization_id, caller.catalog_version, name
            if key in self._types:
                return self._types[key]
        return self.load(caller, [name])[name]  # it was forgotten meanwhile


def _compile(schema: Any) -> Validator | None:
    if schema is None:
        return None
    try:
        return Validator(schema)
    except SchemaError:  # it was compiled before it was stored; a later version of the library may accept less
        return None


catalog = Catalog()


def refused(errors: FieldErrors) -> Exception:
    """Return the 400 for an event that the organization doesn't take."""
    return invalid(errors, "The event does not fit the organization's event types.")


def replace_refused(
    items: Sequence[NewEvent | FieldErrors], found: Sequence[FieldErrors]
) -> list[NewEvent | FieldErrors]:
    """Return the items of a batch with the errors of those that are refused in their place.

    found: what is wrong with each of the items that are events.
    """
    remaining = iter(found)
    return [(next(remaining) or item) if isinstance(item, NewEvent) else item for item in items]
