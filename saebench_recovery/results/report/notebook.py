"""Runs, comparisons and attributions as tables in a notebook.

Importing this registers the drawings with `base.notebook`. Every text is escaped: names of plugins
and ids of examples are what others chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from saebench_recovery.base.notebook import as_html
from saebench_recovery.results.compare import Comparisons
from saebench_recovery.results.report import attribution_lines, comparison_lines
from saebench_recovery.results.report.escape import html
from saebench_recovery.results.report.headline import by_label, explained, figures, terms, title
from saebench_recovery.results.summary import by_task
from saebench_recovery.schema import Attribution, RunResult


@as_html.register
def run_html(result: RunResult) -> str:
    """A column for each task, the terms of the run, and what its flags mean."""
    tasks = by_task(result.rows)
    columns = figures(tasks)
    flags = (
        paragraph(
            f"{flag.sentence}; {flag.remedy}",
            bold=flag.name,
            note=f" ({flag.level}, {', '.join(where)}): ",
        )
        for flag, where in explained(tasks)
    )
    return "".join(
        [
            paragraph("", bold=title(result)),
            table(["", *columns], by_label(columns)),
            paragraph("; ".join(terms(result))),
            *flags,
            paragraph(f"run {result.identity}, {result.status}"),
        ]
    )


@as_html.register
def comparisons_html(found: Comparisons) -> str:
    """For each task the runs side by side, their paired differences, and the verdicts."""
    shown = []
    for comparison in found:
        numbers = [str(i + 1) for i in range(len(comparison.runs))]
        heading = f": {comparison_lines.heading(comparison)}"
        shown += [
            paragraph(heading, bold=comparison.task),
            *map(paragraph, comparison_lines.run_lines(comparison)),
            table(["", *numbers], comparison_lines.figures(comparison)),
            table(comparison_lines.DIFFERENCE_HEADS, comparison_lines.differences(comparison)),
            *(
                paragraph(line, bold=f"{word}: ")
                for word, line in comparison_lines.remarks(comparison)
            ),
        ]
    return "".join(shown)


@as_html.register
def attribution_html(found: Attribution) -> str:
    """For each task and kind of deltas what every part does, under its verdict."""
    lines = attribution_lines
    shown = []
    for task in found.tasks:
        name, line = lines.task_line(task)
        shown.append(paragraph(line, bold=name))
        for delta in task.deltas:
            held = lines.held_line(delta)
            shown += [
                paragraph(delta.verdict),
                table(lines.part_heads(task, delta), lines.part_rows(delta)),
                paragraph(held) if held else "",
            ]
        shown += [paragraph(lines.contrast_line(contrast)) for contrast in task.contrasts]
        if len(task.places) > 1:
            shown.append(table(lines.PLACE_HEADS, lines.place_rows(task)))
    shown += [paragraph(line, bold="left out: ") for line in found.skipped]
    return "".join(shown)


def table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Heads across and rows down, escaped; the first cell of a row is its label."""
    head = "".join(f"<th>{html(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr><th>{html(label)}</th>"
        + "".join(f"<td>{html(cell)}</td>" for cell in cells)
        + "</tr>"
        for label, *cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def paragraph(text: str, *, bold: str = "", note: str = "") -> str:
    """A paragraph, escaped: a word in bold, a note on it, and the text."""
    strong = f"<strong>{html(bold)}</strong>" if bold else ""
    return f"<p>{strong}{html(note + text)}</p>"
