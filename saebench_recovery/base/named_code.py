"""Code that a setting names (a judge, a package with weights): imported only if the user named it.

Targets, results and other files may hold such a name too; there it opens nothing.
"""

from __future__ import annotations

from saebench_recovery.base.errors import UserError

_named: set[str] = set()


def allow(name: str) -> None:
    """The user gave this name on the command line or in a Python call."""
    _named.add(name)


def allowed() -> frozenset[str]:
    """All names that the user gave, for another process to allow."""
    return frozenset(_named)


def check_allowed(name: str, option: str) -> None:
    """Make sure that the user gave the name; `option` is how.

    Raises:
        UserError: only a file did.
    """
    if name not in _named:
        raise UserError(
            f"{name!r} is code, and a file alone may not have it imported; if you trust it, name "
            f"it on the command line: {option}"
        )
