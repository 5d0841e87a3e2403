"""Serializers: strict ones for what comes in, fast ones for what goes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from operator import attrgetter
from typing import Any, ClassVar

from rest_framework import serializers

from core.field_messages import reword
from core.json_response import Fragment
from core.suggestions import closest, unknown_field


class StrictSerializer(serializers.Serializer[Any]):
    """A serializer that rejects unknown members, by name, instead of ignoring them.

    With `partial`, it also rejects an object that names nothing to change, unless the context has `may_be_empty`:
    a form that is saved as it is.
    """

    # For names that people use by mistake: the field that they mean, or a sentence that says what to do instead.
    hints: ClassVar[Mapping[str, str]] = {}

    @cached_property
    def fields(self) -> Any:
        """Return the fields by name: copies of this serializer's own, which say what is wrong in our words."""
        found = super().fields
        for field in found.values():
            reword(field)
        return found

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return super().to_internal_value(data)
        known = [name for name, field in self.fields.items() if not field.read_only]
        if self.partial and not data and not self.context.get("may_be_empty"):
            reason = f"names nothing to change; the fields are {', '.join(known)}"
            raise serializers.ValidationError({"non_field_errors": [reason]})
        errors: dict[str, Any] = {
            name: [unknown_field(name, known, self.hints)] for name in data if name not in self.fields
        }
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            if isinstance(error.detail, Mapping):
                # A field that is missing because it was given under another name isn't reported twice.
                given = {self.hints.get(name) or closest(name, known) for name in errors}
                errors |= {name: one for name, one in error.detail.items() if name in data or name not in given}
            elif not errors:
                raise
        if errors:
            raise serializers.ValidationError(errors)
        return values


def is_plain_text(value: str) -> bool:
    """Return whether a text is free of control characters."""
    return not any(ord(character) < 32 or ord(character) == 127 for character in value)


def validate_plain_text(value: str) -> None:
    """Reject control characters.  Raises ValidationError."""
    if not is_plain_text(value):
        raise serializers.ValidationError("must not contain control characters")


class StrictCharField(serializers.CharField):
    """A string.  DRF's own field also takes numbers."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError("must be a string")
        return str(super().to_internal_value(data))


class StrictChoiceField(serializers.ChoiceField):
    """One of a few words.  DRF's own field also takes a number that is written like one, and fails for an array."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str):
            self.fail("invalid_choice", input=data)
        return super().to_internal_value(data)


class StrictIntegerField(serializers.IntegerField):
    """An integer.  DRF's own field also takes strings and booleans."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            raise serializers.ValidationError("must be a whole number")
        return int(super().to_internal_value(data))


class StrictBooleanField(serializers.BooleanField):
    """True or false.  DRF's own field also takes strings and numbers."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            raise serializers.ValidationError("must be true or false")
        return data


class StrictFloatField(serializers.FloatField):
    """A number.  DRF's own field also takes strings and booleans."""

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            raise serializers.ValidationError("must be a number")
        return float(super().to_internal_value(data))


class RawJSONField(serializers.JSONField):
    """Stored JSON text that goes into the response byte for byte."""

    def to_representation(self, value: Any) -> Any:
        return Fragment(value)


# orjson writes these as the field would: the values need no conversion.
_WRITTEN_AS_THEY_ARE = (
    serializers.BooleanField,
    serializers.CharField,
    serializers.ChoiceField,
    serializers.DateTimeField,
    serializers.DictField,
    serializers.FloatField,
    serializers.IntegerField,
    serializers.ListField,
    serializers.UUIDField,
)


def _itself(instance: Any) -> Any:
    return instance


class OutputSerializer(serializers.Serializer[Any]):
    """The shape of a response: its fields make the OpenAPI schema and read the members from an object.

    DRF's fields convert each value to text for a renderer of theirs; orjson writes times, UUIDs and numbers itself.
    Without that conversion a page of 200 events takes a tenth of the time to serialize.
    """

    @cached_property
    def _members(self) -> list[tuple[str, Callable[[Any], Any], Callable[[Any], Any] | None]]:
        """Return each member's name, what reads it from the object, and what converts its value, if it is converted."""
        members: list[tuple[str, Callable[[Any], Any], Callable[[Any], Any] | None]] = []
        for name, field in self.fields.items():
            read = _itself if field.source == "*" else attrgetter(field.source or name)
            convert = None if type(field) in _WRITTEN_AS_THEY_ARE else field.to_representation
            members.append((name, read, convert))
        return members

    def to_representation(self, instance: Any) -> dict[str, Any]:
        """Return the members of `instance`, ready for orjson."""
        shown = {}
        for name, read, convert in self._members:
            value = read(instance)
            shown[name] = value if convert is None or value is None else convert(value)
        return shown
