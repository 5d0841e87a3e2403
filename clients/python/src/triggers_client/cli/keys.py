"""Single key presses, where there is a terminal for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator


def are_available() -> bool:
    """Return whether keys can be read: not without a terminal, in the background of one, or on Windows."""
    if os.name != "posix" or sys.stdin is None or not sys.stdin.isatty():
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # the terminal isn't this session's
        return False


@contextlib.contextmanager
def watched(pressed: Callable[[str], None]) -> Iterator[None]:
    """Call `pressed` with each key, until the block ends.  The terminal is what it was afterward."""
    if not are_available():
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        keys = os.read(descriptor, 64)
        if not keys:  # the terminal is gone
            loop.remove_reader(descriptor)
        for key in keys.decode("ascii", "ignore"):
            pressed(key)

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
