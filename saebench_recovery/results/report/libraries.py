"""The libraries of the extra `report`; scripts are read from their own Python packages."""

from __future__ import annotations

from importlib import import_module, resources
from typing import Any

from saebench_recovery.base.errors import UserError


def library(name: str) -> Any:
    """A module of the extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(f"this needs {package}: pip install 'saebench-recovery[report]'") from None


def check_libraries() -> None:
    """Make sure that a report can be written, before any work is done.

    Raises:
        UserError: the extra is not installed.
    """
    for name in ("itables", "vl_convert"):
        library(name)


def table_library() -> tuple[str, str]:
    """DataTables as an ES module and its style sheet, from the package `itables`."""
    folder = resources.files(library("itables")) / "html"
    return (folder / "dt_bundle.js").read_text("utf-8"), (folder / "dt_bundle.css").read_text(
        "utf-8"
    )


def plot_library() -> str:
    """Vega, Vega-Lite and vega-embed as a script, from the package `vl_convert`."""
    return str(library("vl_convert").javascript_bundle())
