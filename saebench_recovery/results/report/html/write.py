"""A report on disk: one page, and on request its plots as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import is_folder
from saebench_recovery.results.report.html import content, figures
from saebench_recovery.results.report.html.page import page
from saebench_recovery.results.report.libraries import check_libraries
from saebench_recovery.results.reported import read_reported
from saebench_recovery.results.store import check_writable, write_atomically


def check_report(file: Path, pictures: Path | None = None) -> None:
    """Make sure that a report can be written, before any work is done.

    Raises:
        UserError: the extra `report` is not installed, or a place cannot be written.
    """
    if is_folder(file):
        raise UserError(f"{str(file)!r} is a folder; name a file, such as report.html")
    check_libraries()
    for folder in (file.parent, *([pictures] if pictures else [])):
        check_writable(folder)


def write_report(places: Sequence[Path], file: Path, pictures: Path | None = None) -> list[Path]:
    """Write the page of some runs or leaderboards; the paths of all that was written.

    `pictures` is a folder for the plots as SVG and PNG.

    Raises:
        UserError: there are no results, or see `check_report`.
    """
    check_report(file, pictures)
    lines = content.lines(read_reported(places))
    write_atomically(file, page(lines).encode())
    return [file, *(figures.write_figures(lines, pictures) if pictures else ())]
