"""Where a process keeps its metrics: a file in METRICS_DIR, mapped into memory.

A file is a *slot*.  A process holds the lock on its slot until it ends, in whatever way, and the next process that
starts takes the slot over and continues from its numbers.  So the counts of a killed process stay, and there are never
more files than there were processes at the same time.

Counting is a write into memory.  Without METRICS_DIR, it is the process's private memory, which nothing reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import structlog
from django.conf import settings

log = structlog.get_logger()

MAX_SLOTS = 1000
# The size of a slot: some 200 bytes for each combination of labels.
SLOT_BYTES = 1 << 18

_MAGIC = b"TRGMTX01"
_HEADER = struct.Struct("=8sQ")  # the magic number, and how many bytes are used
_ENTRY = struct.Struct("=II")  # the length of the key, and how many numbers follow it

# What identifies a number: the kind of metric (a letter), its name, and the values of its labels.
Key = tuple[str, ...]
Numbers: TypeAlias = "array[float] | memoryview[float]"
LIVE_ONLY = "g"  # the kind whose numbers end with their process


class Slot:
    """A slot that this process holds."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor  # open, and so locked, as long as the process lives
        # Raises OSError where there is no room.  Writing into a mapped file that has none would kill the process.
        os.posix_fallocate(descriptor, 0, SLOT_BYTES)
        self._memory = mmap.mmap(descriptor, SLOT_BYTES)
        magic, used = _HEADER.unpack_from(self._memory)
        if magic != _MAGIC or not _HEADER.size <= used <= SLOT_BYTES:
            _HEADER.pack_into(self._memory, 0, _MAGIC, _HEADER.size)
        self._places: dict[Key, tuple[int, int]] = {}
        for key, offset, width in _entries(self._memory):
            self._places[key] = offset, width
            if key[0] == LIVE_ONLY:
                self._view(offset, width)[:] = array("d", bytes(8 * width))

    def numbers(self, key: Key, width: int) -> Numbers | None:
        """Return the numbers of a key, zeros if it is new; None if the slot is full."""
        place = self._places.get(key)
        if place is None or place[1] != width:
            place = self._add(key, width)
            if place is None:
                return None
            self._places[key] = place
        return self._view(*place)

    def _add(self, key: Key, width: int) -> tuple[int, int] | None:
        name = json.dumps(key).encode()
        (_, used) = _HEADER.unpack_from(self._memory)
        offset = _aligned(used + _ENTRY.size + len(name))
        end = offset + 8 * width
        if end > SLOT_BYTES:
            return None
        _ENTRY.pack_into(self._memory, used, len(name), width)
        self._memory[used + _ENTRY.size : used + _ENTRY.size + len(name)] = name
        self._memory[offset:end] = bytes(8 * width)
        # Last: a process that is killed before this has added nothing.
        _HEADER.pack_into(self._memory, 0, _MAGIC, end)
        return offset, width

    def _view(self, offset: int, width: int) -> memoryview[float]:
        return memoryview(self._memory)[offset : offset + 8 * width].cast("d")


def _aligned(offset: int) -> int:
    return (offset + 7) & ~7


def _entries(memory: mmap.mmap | bytes) -> Iterator[tuple[Key, int, int]]:
    """Yield the key of each entry, where its numbers are, and how many.  Ends where the file makes no sense."""
    magic, used = _HEADER.unpack_from(memory)
    offset = _HEADER.size
    if magic != _MAGIC:
        return
    while offset + _ENTRY.size <= min(used, len(memory)):
        length, width = _ENTRY.unpack_from(memory, offset)
        start = offset + _ENTRY.size
        numbers = _aligned(start + length)
        offset = numbers + 8 * width
        if offset > len(memory):
            return
        try:
            key = tuple(map(str, json.loads(memory[start : start + length])))
        except ValueError:
            return
        yield key, numbers, width


class Store:
    """The numbers of this process.  folder: METRICS_DIR; None keeps them in private memory."""

    def __init__(self, folder: Path | None) -> None:
        self._lock = threading.Lock()
        self._slot = _take_slot(folder) if folder is not None else None
        self._own: dict[Key, Numbers] = {}

    def numbers(self, key: Key, width: int) -> Numbers:
        """Return the numbers that a key stands for."""
        with self._lock:
            found = self._slot.numbers(key, width) if self._slot is not None else None
            if found is None:
                found = self._own.setdefault(key, array("d", bytes(8 * width)))
            return found


def _take_slot(folder: Path) -> Slot | None:
    """Return the first slot that no living process holds; None, with a line in the log, if there is none."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(MAX_SLOTS):
            descriptor = os.open(_path(folder, number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Slot(descriptor)
            os.close(descriptor)
    except OSError as error:
        log.error("metrics_not_kept", setting="METRICS_DIR", reason=str(error))
        return None
    log.error("metrics_not_kept", setting="METRICS_DIR", reason=f"There are {MAX_SLOTS} files in use.")
    return None


def _path(folder: Path, number: int) -> Path:
    return folder / f"slot-{number}"


_store: Store | None = None
_making = threading.Lock()


def store() -> Store:
    """Return the store of this process; the first call takes a slot."""
    global _store
    if _store is not None:
        return _store
    with _making:
        if _store is None:
            _store = Store(Path(settings.METRICS_DIR) if settings.METRICS_DIR else None)
        return _store


def _forget() -> None:
    global _store, _making
    _store, _making = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def read_all(folder: Path) -> dict[Key, list[float]]:
    """Return the sums over all slots; for gauges, only over live processes."""
    sums: dict[Key, list[float]] = {}
    for path in sorted(folder.glob("slot-*")):
        try:
            content, is_alive = _read(path)
        except OSError:
            continue  # gone meanwhile
        if len(content) < _HEADER.size:
            continue
        for key, offset, width in _entries(content):
            if key[0] == LIVE_ONLY and not is_alive:
                continue
            numbers = struct.unpack_from(f"={width}d", content, offset)
            known = sums.get(key)
            if known is None:
                sums[key] = list(numbers)
            elif len(known) == width:
                sums[key] = [one + other for one, other in zip(known, numbers, strict=True)]
    return sums


def _read(path: Path) -> tuple[bytes, bool]:
    """Return the used part of a slot, and whether the process that wrote it lives."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        used = _HEADER.unpack(head)[1] if len(head) == _HEADER.size else 0
        content = head + file.read(max(0, min(used, SLOT_BYTES) - len(head)))
        try:
            # Shared, and for a moment: a process that starts just now takes the next slot.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return content, True
        return content, False
