"""A comparison as tables: the runs side by side, their paired differences, and what was unequal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from saebench_recovery.results.compare import Comparison, Pair, Side
from saebench_recovery.results.report.table import NONE, rate
from saebench_recovery.schema import Mean


def print_comparisons(found: Sequence[Comparison]) -> None:
    """Print every task's comparison; runs go by numbers, which a list explains."""
    console = Console()
    for comparison in found:
        number = {side.name: str(i) for i, side in enumerate(comparison.sides, 1)}
        at = "" if comparison.flops is None else f", at {comparison.flops:.2g} FLOPs on each"
        console.print(f"[bold]{comparison.task}[/bold]: {comparison.flips} flips in common{at}")
        for side in comparison.sides:
            flags = f"; flags: {', '.join(side.flags)}" if side.flags else ""
            said = f"{number[side.name]}  {side.name}, run {side.identity}{flags}"
            console.print(escape(said), highlight=False)
        console.print(_table([_figures(side, number) for side in comparison.sides]))
        console.print(_table([_difference(pair, number) for pair in comparison.pairs]))
        for line in comparison.unequal:
            console.print(f"[bold]unequal:[/bold] {escape(line)}", highlight=False)


def _table(rows: Sequence[dict[str, str]]) -> Table:
    table = Table(box=SIMPLE)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def _figures(side: Side, number: Mapping[str, str]) -> dict[str, str]:
    return {
        "": number[side.name],
        "recovery": rate(side.recovery),
        "constrained": rate(side.constrained),
        "drift": _number(side.drift),
        "norm": _number(side.norm),
        "FLOPs": _number(side.flops),
    }


def _difference(pair: Pair, number: Mapping[str, str]) -> dict[str, str]:
    first = next(iter(number.values()))
    interval = "" if pair.low is None else f" \\[{pair.low:+.2f}, {pair.high:+.2f}]"
    return {
        "": f"{number[pair.name]} - {first}",
        "of": pair.measure,
        "difference": f"{pair.difference:+.2f}{interval}",
        f"{first} >": str(pair.first_larger),
        f"{first} <": str(pair.this_larger),
        "p": f"{pair.p_value:.2g}",
    }


def _number(value: Mean) -> str:
    return NONE if value.mean is None else f"{value.mean:.2g}"
