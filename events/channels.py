"""Channels: names on an event that subscriptions can select in addition to its type: a project, a region, a
customer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MAX_CHANNELS = 10
MAX_CHARACTERS = 128
NAME = re.compile(r"[A-Za-z0-9_.:/-]+")


def channels_error(value: Any) -> tuple[int | None, str] | None:
    """Return what is wrong with a list of channels, and at which position (None for the whole), or None."""
    if not isinstance(value, list):
        return None, "must be an array of channel names"
    if len(value) > MAX_CHANNELS:
        return None, f"must hold at most {MAX_CHANNELS} channels"
    for position, name in enumerate(value):
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_CHARACTERS or not NAME.fullmatch(name):
            return position, f"must be 1 to {MAX_CHARACTERS} letters, digits, and _ . : / -"
    return None


def join(channels: Sequence[str]) -> str | None:
    """Return channels as one text, for the statements that insert events: PostgreSQL flattens arrays of arrays."""
    return ",".join(channels) if channels else None
