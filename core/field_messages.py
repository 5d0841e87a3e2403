"""What DRF's fields say of wrong values, in the words of this API's other messages: each says what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core import validators
from rest_framework import serializers

_TIME = "must be an ISO 8601 time such as 2026-01-31T12:00:00Z"
_ALL = {"required": "is required", "null": "must not be null"}
# By class, the base classes first: a field has the messages of each of its classes.
_MESSAGES: Mapping[type[Any], Mapping[str, str]] = {
    serializers.CharField: {"invalid": "must be a string", "blank": "must not be empty"},
    serializers.IntegerField: {"invalid": "must be a whole number"},
    serializers.FloatField: {"invalid": "must be a number", "overflow": "is too large"},
    serializers.BooleanField: {"invalid": "must be true or false"},
    serializers.DateTimeField: dict.fromkeys(("invalid", "date", "make_aware", "overflow"), _TIME),
    serializers.UUIDField: {"invalid": "must be a UUID, such as 0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"},
    serializers.JSONField: {"invalid": "must be a JSON value"},
    serializers.ListField: {"not_a_list": "must be an array", "empty": "must not be empty"},
    serializers.Serializer: {"invalid": "must be a JSON object"},
}


def _limit_message(field: Any, validator: Any) -> str | None:
    """Return what a validator of Django's for a limit says, or None for any other validator."""
    if isinstance(validator, validators.MinValueValidator | validators.MaxValueValidator):
        low, high = field.min_value, field.max_value
        if low is None or high is None:
            return "must be at most %(limit_value)s" if low is None else "must be at least %(limit_value)s"
        return f"must be from {low} to {high}"
    unit = "items" if isinstance(field, serializers.ListField) else "characters"
    if isinstance(validator, validators.MaxLengthValidator):
        return f"must have at most %(limit_value)d {unit}"
    if isinstance(validator, validators.MinLengthValidator):
        return f"must have at least %(limit_value)d {unit}"
    return None


def reword(field: Any) -> None:
    """Give a field and those inside it our messages.  The field must be one serializer's own: it is changed."""
    field.error_messages.update(_ALL)
    for kind, messages in _MESSAGES.items():
        if isinstance(field, kind):
            field.error_messages.update(messages)
    if isinstance(field, serializers.ChoiceField):
        field.error_messages["invalid_choice"] = "must be one of " + ", ".join(str(one) for one in field.choices)
    for validator in field.validators:
        if message := _limit_message(field, validator):
            validator.message = message
    if isinstance(field, serializers.ListField | serializers.DictField):
        reword(field.child)
