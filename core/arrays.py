"""PostgreSQL arrays as text, for parameters such as `%(ids)s::uuid[]`.

psycopg looks at each element of a list with a regular expression; for thousands of elements, that takes longer than the
statement itself.
"""

from __future__ import annotations

from collections.abc import Iterable


def plain_array(values: Iterable[object]) -> str:
    """Return the text of an array of ids, numbers, or words that are letters and none of which is "null"."""
    return "{" + ",".join(map(str, values)) + "}"


def number_array(values: Iterable[float | None]) -> str:
    """Return the text of an array of numbers; None becomes NULL."""
    return "{" + ",".join(["NULL" if value is None else repr(value) for value in values]) + "}"


def text_array(values: Iterable[str | None]) -> str:
    """Return the text of an array of any texts; None becomes NULL."""
    return (
        "{"
        + ",".join(
            [
                "NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
                for value in values
            ]
        )
        + "}"
    )


def bytes_array(values: Iterable[bytes | None]) -> str:
    """Return the text of an array of byte strings; None becomes NULL."""
    return text_array(None if value is None else "\\x" + value.hex() for value in values)
