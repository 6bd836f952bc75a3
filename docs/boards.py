"""Writes all that the committed boards are shown by, from the evidence of their entries.

python -m docs.boards           writes boards, figure, external.md, and a board in README.md
python -m docs.boards --check   fails if they are out of date

Numbers may differ by rounding, as they do between machines: NumPy chooses its code by the CPU.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from docs.external import external
from saebench_recovery.results.leaderboard import Leaderboard, build
from saebench_recovery.results.mismatch import same_number
from saebench_recovery.results.pages import write_boards
from saebench_recovery.results.report import standing_lines
from saebench_recovery.results.report.html.write import write_report
from saebench_recovery.results.report.markdown import table

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "leaderboards"
# Entries whose replay needs weights that are no part of the package have a folder of their own.
HOLDERS = (FOLDER, FOLDER / "gemma-3-270m", FOLDER / "smollm2-135m-instruct")
FIGURE = "standings-1.svg"
SHOWN = ("ioi", 5)  # the task in the README, and how many of its defenses
FLOAT = re.compile(rb"(?<![\w.])-?\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)(?![\w.])")
UNROUNDED = 14  # characters of a number that is written in full, at least
START, END = "<!-- board: start -->\n", "<!-- board: end -->\n"


def readme(boards: list[Leaderboard]) -> str:
    """The README with the top of a board between its marks."""
    before, _, rest = (ROOT / "README.md").read_text("utf-8").partition(START)
    _, _, behind = rest.partition(END)
    task, most = SHOWN
    (board,) = (one for one in boards if one.task == task)
    group = board.groups[0]
    shown = min(most, len(group.defenses))
    intro = (
        f"The first {shown} of {len(group.defenses)} defenses on `{board.target}`, task `{task}`, "
        f"{standing_lines.terms(group)}. {standing_lines.counted(group)}"
    )
    return "".join((before, START, "\n".join([intro, "", *table(group, most)]), "\n", END, behind))


def written() -> Iterator[tuple[Path, bytes]]:
    """Every file with its content."""
    boards = build([run for folder in HOLDERS for run in sorted((folder / "evidence").iterdir())])
    embedded = [board for board in boards if board.target == "organism"]
    with TemporaryDirectory() as folder:
        place = Path(folder)
        for path in write_boards(boards, place / "boards"):
            yield FOLDER / path.name, path.read_bytes()
        write_boards(embedded, place / "embedded")
        write_report([place / "embedded"], place / "page.html", place)
        yield FOLDER / "organism.svg", (place / FIGURE).read_bytes()
    yield FOLDER / "external.md", external().encode()
    yield ROOT / "README.md", readme(embedded).encode()


def alike(one: bytes, other: bytes) -> bool:
    """Whether two files say the same, but for how their floating-point numbers are rounded."""
    if one == other:
        return True
    numbers, others = FLOAT.findall(one), FLOAT.findall(other)
    return FLOAT.split(one) == FLOAT.split(other) and all(map(_rounded, numbers, others))


def _rounded(one: bytes, other: bytes) -> bool:
    """Whether two numbers differ by rounding; short ones were rounded when they were written."""
    if one == other or max(len(one), len(other)) < UNROUNDED:
        return one == other
    return math.isfinite(float(one)) and same_number(float(one), float(other))


def main() -> None:
    old = []
    for path, content in written():
        if "--check" not in sys.argv:
            path.write_bytes(content)
        elif not path.is_file() or not alike(path.read_bytes(), content):
            old.append(path.relative_to(ROOT).as_posix())
    if old:
        sys.exit(f"out of date, write them with `python -m docs.boards`: {', '.join(old)}")


if __name__ == "__main__":
    main()
