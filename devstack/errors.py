"""The one error of this package, and how to find the line of a text that tells what went wrong."""

from __future__ import annotations

import re
from pathlib import Path

_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Configured|Timeout|Warning|Interrupt)\b(: |$)")
LONGEST_MESSAGE = 500


class DevstackError(Exception):
    """Something could not be started or stopped; the message is one clear line."""


def last_line(text: str) -> str:
    """Return the last line of `text` that says anything, or `no message`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LONGEST_MESSAGE] if lines else "no message"


def reason(text: str) -> str:
    """Return the reason in what a failed Python program printed, in one line.

    That is the message of the last exception, which may run over several lines, or the last line
    when there is no traceback.
    """
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    for position in range(len(lines) - 1, -1, -1):
        if _EXCEPTION.match(lines[position]):
            message = " ".join(line.strip() for line in lines[position:])
            return message[:LONGEST_MESSAGE]
    return last_line(text)


def tail_of(path: Path, size: int) -> str:
    """Return the last `size` bytes of a file as text; nothing when there is no such file."""
    try:
        with path.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - size))
            return log.read().decode("utf-8", "replace")
    except OSError:
        return ""


def last_line_of(path: Path) -> str:
    """Return the last line of a log file; `no message` when there is none."""
    return last_line(tail_of(path, 20_000))
