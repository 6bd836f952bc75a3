"""Draws docs/architecture.svg: the rooms in the order of the layers, and who imports whom.

`python -m docs.architecture` writes the picture; with `--check` it fails where the picture shows
other rooms or arrows than the code has. Numbers of files and lines are as of the last drawing.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

from tests.structure.source import imports, layers, modules

PICTURE = Path(__file__).with_suffix(".svg")

BOX_WIDTH, BOX_HEIGHT = 256, 30
GUTTER, CHANNEL, MARGIN = 52, 36, 16  # between columns, between rows, around all
LANE, TRACK, PORT, CORNER = 10, 7, 26, 5
COLUMNS = 3

STYLE = """
  .box { fill: #f6f8fa; stroke: #8c959f; }
  .name { fill: #1f2328; font: 600 13px system-ui, sans-serif; }
  .size { fill: #59636e; font: 12px system-ui, sans-serif; text-anchor: end; }
  .arrow { fill: none; stroke: #59636e; stroke-width: 1.3; marker-end: url(#head); }
  .head { fill: #59636e; }
  @media (prefers-color-scheme: dark) {
    .box { fill: #161b22; stroke: #6e7681; }
    .name { fill: #e6edf3; }
    .size { fill: #9198a1; }
    .arrow { stroke: #9198a1; }
    .head { fill: #9198a1; }
  }
"""

Point = tuple[float, float]


def rows() -> list[list[str]]:
    """The layers without `__main__`, which only calls the command line."""
    return [layer for layer in layers() if layer != ["__main__"]]


def room_imports() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    shown = {room for layer in rows() for room in layer}
    for edge in imports():
        importer, imported = (modules()[name].room for name in (edge.importer, edge.imported))
        if importer != imported and {importer, imported} <= shown:
            found[importer].add(imported)
    return found


def arrows(direct: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Imports without those that other arrows already lead along."""

    def reached(room: str) -> set[str]:
        below = direct.get(room, set())
        return below.union(*(reached(other) for other in below))

    for room in (room for layer in rows() for room in layer):
        for imported in sorted(direct.get(room, ())):
            if not any(imported in reached(other) for other in direct[room] - {imported}):
                yield room, imported


class Plan:
    """Where the boxes stand, and the ways of the arrows between them.

    An arrow leaves a box below, and enters one from above together with all others that do. One
    that passes a row runs in a lane of its own between two columns.
    """

    def __init__(self) -> None:
        self.row = {room: depth for depth, layer in enumerate(rows()) for room in layer}
        self.column = {
            room: 1 if len(layer) == 1 else place
            for layer in rows()
            for place, room in enumerate(layer)
        }
        # Those that go to the right get the lanes on the right, and so cross fewer others.
        self.arrows = sorted(arrows(room_imports()), key=lambda arrow: self.column[arrow[1]])
        self.lanes: dict[tuple[int, int], set[int]] = defaultdict(set)  # the rows that they pass
        self.ports: Counter[str] = Counter()

    def left(self, room: str) -> float:
        return MARGIN + self.column[room] * (BOX_WIDTH + GUTTER)

    def middle(self, room: str) -> float:
        return self.left(room) + BOX_WIDTH / 2

    def top(self, room: str) -> float:
        return MARGIN + self.row[room] * (BOX_HEIGHT + CHANNEL)

    def path(self, source: str, target: str) -> list[Point]:
        """The corners of an arrow."""
        down, top = self.top(source) + BOX_HEIGHT, self.top(target)
        x, end = self.middle(source), self.middle(target)
        above = top - CHANNEL / 2 + TRACK * (self.column[target] - 1)
        if self.row[target] == self.row[source] + 1:
            return [(x, down), (x, above), (end, above), (end, top)]
        # To the right of the left one of the two columns, where a lane passes every row.
        gutter = min(self.column[source], self.column[target], COLUMNS - 2)
        passed = set(range(self.row[source], self.row[target]))
        slot = next(s for s in count() if not self.lanes[gutter, s] & passed)
        self.lanes[gutter, slot] |= passed
        lane = MARGIN + (gutter + 1) * (BOX_WIDTH + GUTTER) - GUTTER + LANE * (slot + 1)
        self.ports[source] += 1
        x += PORT * self.ports[source] * (1 if lane > x else -1)
        below = down + CHANNEL / 4
        return [(x, down), (x, below), (lane, below), (lane, above), (end, above), (end, top)]


def rounded(corners: list[Point]) -> str:
    """An SVG path through the corners, each cut by a small curve."""
    points = [p for p, after in pairwise(corners) if p != after] + corners[-1:]
    drawn = [f"M{points[0][0]:g} {points[0][1]:g}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        ends = (_towards(corner, before), _towards(corner, after))
        (x1, y1), (x2, y2) = ends
        drawn.append(f"L{x1:g} {y1:g}Q{corner[0]:g} {corner[1]:g} {x2:g} {y2:g}")
    drawn.append(f"L{points[-1][0]:g} {points[-1][1]:g}")
    return "".join(drawn)


def _towards(corner: Point, other: Point) -> Point:
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = abs(dx) + abs(dy)  # segments are horizontal or vertical
    step = min(CORNER, length / 2) / length
    return corner[0] + dx * step, corner[1] + dy * step


def box(plan: Plan, room: str, direct: set[str]) -> str:
    files = [module for module in modules().values() if module.room == room]
    lines = sum(module.lines for module in files)
    kind = "file" if len(files) == 1 else "files"
    x, y = plan.left(room), plan.top(room)
    hint = f"imports {', '.join(sorted(direct))}" if direct else "imports no other room"
    base = y + BOX_HEIGHT / 2 + 4.5
    return (
        f"<g><title>{room} {hint}</title>"
        f'<rect class="box" x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"/>'
        f'<text class="name" x="{x + 12}" y="{base}">{room}</text>'
        f'<text class="size" x="{x + BOX_WIDTH - 12}" y="{base}">'
        f"{len(files)} {kind}, {lines} lines</text></g>"
    )


def picture() -> str:
    plan, direct = Plan(), room_imports()
    width = 2 * MARGIN + COLUMNS * BOX_WIDTH + (COLUMNS - 1) * GUTTER
    height = 2 * MARGIN + len(rows()) * BOX_HEIGHT + (len(rows()) - 1) * CHANNEL
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            "<title>The rooms and their imports</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
            *(f'<path class="arrow" d="{rounded(plan.path(*arrow))}"/>' for arrow in plan.arrows),
            *(box(plan, room, direct.get(room, set())) for layer in rows() for room in layer),
            "</svg>\n",
        ]
    )


def without_sizes(drawn: str) -> str:
    return re.sub(r'(<text class="size"[^>]*>)[^<]*', r"\1", drawn)


def main(arguments: list[str]) -> str | None:
    """Draws or checks; the result is a message for standard error, or None."""
    if arguments == ["--check"]:
        drawn = PICTURE.read_text("utf-8") if PICTURE.exists() else ""
        same = without_sizes(drawn) == without_sizes(picture())
        return None if same else f"{PICTURE.name} is out of date: run `python -m docs.architecture`"
    if arguments:
        return "usage: python -m docs.architecture [--check]"
    PICTURE.write_text(picture(), "utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
