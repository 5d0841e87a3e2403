"""A filtered list as CSV or NDJSON, streamed: any number of rows, one page of them in memory at a time."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.http import StreamingHttpResponse
from django.utils import timezone

from core.query import newest
from core.redis import RedisUnavailable, call_redis

FORMATS = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}
ROWS_AT_A_TIME = 1000
PAGE_TIMEOUT_MS = 15_000
PROGRESS_SECONDS = 3600
# Spreadsheets treat a cell that begins with one of these, the last ones in full width, as a formula (OWASP, CSV
# Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def pages(rows: QuerySet[Any], ordering: Sequence[str], paths: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
    """Yield all rows in pages, each read by its place in the order: no cursor, and no transaction, stays open.

    ordering: field names, each with a minus or none with one; together they are unique.
    """
    names = [name.removeprefix("-") for name in ordering]
    descending = ordering[0].startswith("-")
    place: tuple[Any, ...] | None = None
    while True:
        after = rows if place is None else rows.filter(_after(names, place, descending))
        with transaction.atomic(), connection.cursor() as cursor:
            # SQL, because the ORM doesn't know settings of a transaction.
            cursor.execute(f"SET LOCAL statement_timeout TO {PAGE_TIMEOUT_MS}")
            found: list[Any] = list(newest(after.values_list(*names, *paths), ROWS_AT_A_TIME, ordering))
        yield [row[len(names) :] for row in found]
        if len(found) < ROWS_AT_A_TIME:
            return
        place = found[-1][: len(names)]


def _after(names: Sequence[str], place: Sequence[Any], descending: bool) -> Q:
    """Return the condition for rows behind a place; its first part is one that an index can begin at."""
    operator = "lt" if descending else "gt"
    first, value = names[0], place[0]
    if len(names) == 1:
        return Q(**{f"{first}__{operator}": value})
    return Q(**{f"{first}__{operator}e": value}) & (
        Q(**{f"{first}__{operator}": value}) | _after(names[1:], place[1:], descending)
    )


def _safe_cell(value: Any) -> Any:
    """Return a value for CSV; text that others sent can't be a formula."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        value = value.replace("\x00", "")
        return f"'{value}" if value.startswith(_FORMULA) else value
    return value


def _write_csv(names: Sequence[str], found: Iterable[list[tuple[Any, ...]]]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(names)
    for page in found:
        writer.writerows([_safe_cell(value) for value in row] for row in page)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _write_ndjson(names: Sequence[str], found: Iterable[list[tuple[Any, ...]]]) -> Iterator[bytes]:
    options = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
    for page in found:
        yield b"".join(orjson.dumps(dict(zip(names, row, strict=True)), option=options) for row in page)


def _noting(found: Iterable[list[tuple[Any, ...]]], progress: str) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the pages, and note how many rows have been sent; an export that is interrupted leaves the last number."""
    rows = 0
    for page in found:
        yield page
        rows += len(page)
        _note(progress, rows, is_complete=False)
    _note(progress, rows, is_complete=True)


def _note(progress: str, rows: int, *, is_complete: bool) -> None:
    text = orjson.dumps({"rows": rows, "is_complete": is_complete})
    with contextlib.suppress(RedisUnavailable):  # only shown as progress: an export works without Redis
        call_redis(lambda redis: redis.set(progress, text, ex=PROGRESS_SECONDS))


def progress_key(user_id: int | None, token: uuid.UUID) -> str:
    """Return where the progress of one user's export is kept."""
    return f"triggers:export:{user_id}:{token}"


def read_progress(user_id: int | None, token: uuid.UUID) -> dict[str, Any] | None:
    """Return how many rows an export has written and whether that is all; None if that is unknown."""
    key = progress_key(user_id, token)
    try:
        text: Any = call_redis(lambda redis: redis.get(key))
    except RedisUnavailable:
        return None
    found: dict[str, Any] | None = orjson.loads(text) if text else None
    return found


def export(
    querysets: Iterable[tuple[QuerySet[Any], Sequence[str]]],
    columns: Mapping[str, str],
    name: str,
    form: str,
    progress: str,
) -> StreamingHttpResponse:
    """Return all rows as a file.

    querysets: each with its order.  columns: the paths of fields by the names that they get.  name: what the rows are.
    form: `csv` or `ndjson`.  progress: from `progress_key`.
    """
    found = (page for rows, ordering in querysets for page in pages(rows, ordering, list(columns.values())))
    write: Any = _write_csv if form == "csv" else _write_ndjson
    response = StreamingHttpResponse(write(list(columns), _noting(found, progress)), content_type=FORMATS[form])
    moment = timezone.now().strftime("%Y%m%d-%H%M%S")
    response["Content-Disposition"] = f'attachment; filename="{name}-{moment}.{form}"'
    response["X-Accel-Buffering"] = "no"
    return response
