"""What a notebook shows in place of an object's `repr`.

Tables are drawn far above the objects that they show, so each kind of object has its drawing
registered by the room that draws it (`results/report/notebook.py`).
"""

from __future__ import annotations

from functools import singledispatch


@singledispatch
def as_html(shown: object) -> str | None:
    """The object as HTML; None where nothing draws its kind, and its `repr` is shown."""
    return None


class Shown:
    """An object that notebooks show as a table."""

    def _repr_html_(self) -> str | None:
        return as_html(self)
