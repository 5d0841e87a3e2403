"""The shape of a list's page."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from core.openapi.descriptions import PAGE_DATA

Shape = type[serializers.Serializer[Any]]


def page_of(item: Shape, name: str) -> Shape:
    """Return the shape of a page of `item`s, named `name` in the schema.

    Made with `type`, because its member `data` is named like an attribute of Serializer.
    """
    members: dict[str, Any] = {
        "__doc__": "One page.",
        "data": item(many=True, help_text=PAGE_DATA),
        "next_cursor": serializers.CharField(
            allow_null=True, help_text="Send it as `cursor` to get the next page; null on the last page."
        ),
    }
    return type(name, (serializers.Serializer,), members)
