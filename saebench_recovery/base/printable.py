"""Text that others wrote, made safe to show: no character in it moves a cursor or hides another."""

from __future__ import annotations

import unicodedata

# Control, format (they reverse text or have no width), surrogate; line and paragraph separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text on one line, with characters that are not seen spelled out, such as `\\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(c) if unicodedata.category(c) in _UNSEEN else c for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
