"""The plots of a report as pictures: SVG, and PNG at twice the resolution of a screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saebench_recovery.results.report.html import charts
from saebench_recovery.results.report.html.content import Content
from saebench_recovery.results.report.html.points import attacks
from saebench_recovery.results.report.libraries import library
from saebench_recovery.results.store import write_atomically


def write_figures(lines: list[Content], folder: Path) -> list[Path]:
    """Write `standings-<n>.svg` and `.png` for each of the terms that boards have; their paths.

    And `recovery-<axis>` for each axis that has points.

    Raises:
        UserError: the extra is not installed.
        OSError: the folder cannot be written.
    """
    draw = library("vl_convert")
    written = []
    for name, chart, shown in _charts(lines):
        whole = {**chart, "datasets": {charts.POINTS: shown}, "background": "white"}
        svg = draw.vegalite_to_svg(whole, allowed_base_urls=[])
        png = draw.vegalite_to_png(whole, scale=2, allowed_base_urls=[])
        for ending, picture in (("svg", svg.encode()), ("png", png)):
            written.append(folder / f"{name}.{ending}")
            write_atomically(written[-1], picture)
    return written


def _charts(lines: list[Content]) -> Iterator[tuple[str, charts.Chart, list[dict[str, Any]]]]:
    """The name of each picture, its chart and its points."""
    standings = [line["standing"] for line in lines if line["standing"]["shows"] is not None]
    for number, terms in enumerate(sorted({one["terms"] for one in standings}), 1):
        own = [one for one in standings if one["terms"] == terms]
        yield f"standings-{number}", charts.standings(terms), own
    points = [point for line in lines for point in line["points"]]
    for axis in charts.AXES:
        shown = [p for p in points if p[axis] is not None and p["recovery"] is not None]
        if shown:
            yield f"recovery-{axis}", charts.scatter(axis, attacks(points)), shown
