"""Types of the schema's parts."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
