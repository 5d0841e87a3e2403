"""What the forms of the admin and of the portal share: reading headers, and the serializers' errors as text."""

from __future__ import annotations

from typing import Any

from django import forms


def read_headers(text: str) -> dict[str, str]:
    """Return headers from lines of `Name: value`.  Raises ValidationError for any other line."""
    headers: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise forms.ValidationError(f"Line {number} must have the form “Name: value”.")
        if name.strip() in headers:
            raise forms.ValidationError(f"Line {number} repeats a header.")
        headers[name.strip()] = value.strip()
    return headers


def error_texts(reasons: Any) -> list[str]:
    """Return the serializer's errors, however nested, as a list of texts."""
    if isinstance(reasons, dict):
        return [f"{name}: {text}" if name else text for name, inner in reasons.items() for text in error_texts(inner)]
    if isinstance(reasons, list | tuple):
        return [text for inner in reasons for text in error_texts(inner)]
    return [str(reasons)]
