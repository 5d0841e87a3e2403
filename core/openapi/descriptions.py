"""Descriptions of members that several responses have."""

from __future__ import annotations

CREATED_AT = "When it was created."
ERROR_DETAIL = "What is wrong there, as the end of a sentence: `is required`."
PAGE_DATA = "What is on the page, newest first unless `order` is `asc`."
