"""Less work for Python's garbage collector in a process that lives long."""

from __future__ import annotations

import gc

# Objects that came and did not go until the youngest are looked at.  Python's 700 is soon reached by a single
# request, whose objects nearly all go by themselves; 10,000 of them are a few megabytes.
YOUNG_OBJECTS = 10_000


def settle() -> None:
    """Take what the process has loaded for permanent: the garbage collector never looks at it again.

    Call it when everything is imported and before the work begins.  The modules, classes and settings are some
    hundred thousand objects, and walking them over and over was a tenth of the processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
