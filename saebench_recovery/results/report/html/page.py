"""The page: our markup, style and script, the libraries' scripts, and the results as data.

Scripts and data are compressed, as base64: nothing that stands in them can end their element.
"""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

from saebench_recovery.base.printable import printable
from saebench_recovery.results.report import standing_lines
from saebench_recovery.results.report.escape import html
from saebench_recovery.results.report.html import charts, content
from saebench_recovery.results.report.html.points import attacks
from saebench_recovery.results.report.libraries import plot_library, table_library


def page(lines: Sequence[content.Content]) -> str:
    """The whole file.

    Raises:
        UserError: the extra `report` is not installed.
    """
    table_script, table_style = table_library()
    targets = sorted({line["cells"][0] for line in lines})
    named = attacks(point for line in lines for point in line["points"])
    data = {
        "heads": content.HEADS,
        "filters": content.FILTERS,
        "attackHeads": content.ATTACK_HEADS,
        "charts": {axis: charts.scatter(axis, named) for axis in charts.AXES},
        "bars": charts.bars(),
        "lines": lines,
    }
    return Template(_own("page.html")).substitute(
        title=html(f"Recovery under attack: {', '.join(targets)}"),
        legend=html(" ".join(standing_lines.LEGEND[0].split())),
        style=_own("page.css"),
        table_style=table_style.replace("</", "<\\/"),
        script=_own("page.js"),
        data=_packed(json.dumps(_shown(data), separators=(",", ":"))),
        table_library=_packed(table_script),
        plot_library=_packed(plot_library()),
    )


def _own(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")


def _packed(text: str) -> str:
    return b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _shown(value: Any) -> Any:
    """The same with every text printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(name): _shown(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(one) for one in value]
    return value
