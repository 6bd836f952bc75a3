"""The plots of a report as pictures: SVG, and PNG at twice the resolution of a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saebench_recovery.results.report.html import charts
from saebench_recovery.results.report.html.content import Content
from saebench_recovery.results.report.html.points import attacks
from saebench_recovery.results.report.libraries import library
from saebench_recovery.results.store import write_atomically


def write_figures(lines: list[Content], folder: Path) -> list[Path]:
    """Write `recovery-<axis>.svg` and `.png` for each axis that has points; their paths.

    Raises:
        UserError: the extra is not installed.
        OSError: the folder cannot be written.
    """
    draw = library("vl_convert")
    points = [point for line in lines for point in line["points"]]
    written = []
    for axis in charts.AXES:
        shown = [p for p in points if p[axis] is not None and p["recovery"] is not None]
        if not shown:
            continue
        chart: dict[str, Any] = {
            **charts.scatter(axis, attacks(points)),
            "datasets": {charts.POINTS: shown},
            "background": "white",
        }
        svg = draw.vegalite_to_svg(chart, allowed_base_urls=[])
        png = draw.vegalite_to_png(chart, scale=2, allowed_base_urls=[])
        for ending, picture in (("svg", svg.encode()), ("png", png)):
            written.append(folder / f"recovery-{axis}.{ending}")
            write_atomically(written[-1], picture)
    return written
