"""Serializer parts that say no clearly: unknown members, wrong types and control characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers


class StrictSerializer(serializers.Serializer[Any]):
    """A serializer that names members it doesn't know instead of ignoring them."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            unknown = [name for name in data if name not in self.fields]
            if unknown:
                raise serializers.ValidationError({name: ["is not a known field"] for name in unknown})
        return super().to_internal_value(data)


def is_plain_text(value: str) -> bool:
    """Tell whether a text is free of control characters, which have no business in a name."""
    return not any(ord(character) < 32 or ord(character) == 127 for character in value)


def validate_plain_text(value: str) -> None:
    """Refuse control characters."""
    if not is_plain_text(value):
        raise serializers.ValidationError("must not contain control characters")


class StrictCharField(serializers.CharField):
    """A string, and only a string: a number is a mistake, not a name."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError("must be a string")
        return str(super().to_internal_value(data))


class StrictIntegerField(serializers.IntegerField):
    """A whole number, and neither text nor a truth value that stands for one."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            raise serializers.ValidationError("must be a whole number")
        return int(super().to_internal_value(data))


class StrictFloatField(serializers.FloatField):
    """A number, and neither text nor a truth value that stands for one."""

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            raise serializers.ValidationError("must be a number")
        return float(super().to_internal_value(data))
