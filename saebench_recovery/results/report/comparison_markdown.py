"""Comparisons as Markdown, for a page or an issue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from saebench_recovery.results.compare import Comparison
from saebench_recovery.results.report.comparison_lines import (
    DIFFERENCE_HEADS,
    differences,
    figures,
    heading,
    remarks,
    run_lines,
)
from saebench_recovery.results.report.escape import markdown


def comparison_page(comparisons: Sequence[Comparison]) -> str:
    """A section for each task: verdicts, figures, differences, and what was unequal."""
    lines: list[str] = []
    for comparison in comparisons:
        numbers = [str(i + 1) for i in range(len(comparison.runs))]
        lines += [
            f"## {markdown(comparison.task)}: {heading(comparison)}",
            "",
            *(f"- {markdown(line)}" for line in run_lines(comparison)),
            "",
            *(f"- **{word}:** {markdown(line)}" for word, line in remarks(comparison)),
            "",
            *_table(["", *numbers], figures(comparison)),
            "",
            *_table(DIFFERENCE_HEADS, differences(comparison)),
            "",
        ]
    return "\n".join(lines).rstrip()


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    every = [heads, ["---"] * len(heads), *(list(map(markdown, row)) for row in rows)]
    return [f"| {' | '.join(row)} |" for row in every]
