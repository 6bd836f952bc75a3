"""Names and texts that others chose, escaped for where they are shown: one function a medium."""

from __future__ import annotations

from html import escape as escape_html

from saebench_recovery.base.printable import printable

_MARKDOWN = str.maketrans({"&": "&amp;", **{mark: f"\\{mark}" for mark in "\\`*_{}[]<>|~#!$"}})


def terminal(text: str) -> str:
    """For rich, which takes what stands in brackets for markup; no control character passes."""
    # Only commands that print a table import rich.
    from rich.markup import escape as for_rich

    return for_rich(printable(text))


def markdown(text: str) -> str:
    """For a line or a table's cell of a page: no markup, no HTML, no link and no new line."""
    return printable(text).translate(_MARKDOWN)


def spreadsheet(text: str) -> str:
    """For a cell of a CSV file: programs that open it take none for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def html(text: str) -> str:
    """For a text or a quoted attribute of HTML: no markup, no control character."""
    return escape_html(printable(text))
