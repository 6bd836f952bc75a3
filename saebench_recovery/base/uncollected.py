"""Work that makes many objects and no circles of them, without a search for such circles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's collector of circles rests meanwhile; also a decorator.

    It goes through all objects again and again as they become more, which takes longer than to
    read them from files. What nothing refers to is freed at once all the same.
    """
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran and not gc.get_freeze_count():
            # What was made counts as new, and all of it would be gone through at once.
            gc.freeze()
            gc.unfreeze()
        if ran:
            gc.enable()
