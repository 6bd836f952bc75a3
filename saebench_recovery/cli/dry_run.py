"""`saebench sweep --dry-run`: the cells, what is done, what they share, and what the rest costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from saebench_recovery.base.printable import printable
from saebench_recovery.base.progress import silent
from saebench_recovery.cli.progress import progress_bar

if TYPE_CHECKING:
    from saebench_recovery.runs.plan import Plan
    from saebench_recovery.runs.sweep.cells import Groups
    from saebench_recovery.runs.sweep.estimate import Estimate, Work


def list_cells(plans: Sequence[Plan], states: Sequence[str]) -> None:
    """Print each cell with how far it has come; a number tells which share their passes."""
    from saebench_recovery.runs.sweep.cells import grouped, shared_part, title

    state = {plan.identity: found for plan, found in zip(plans, states, strict=True)}
    left = grouped([plan for plan in plans if state[plan.identity] != "done"], 1)
    known = _estimates(left)
    fits: dict[object, list[Plan]] = {}
    for plan in plans:
        fits.setdefault(shared_part(plan), []).append(plan)
    width = len(str(len(fits)))
    for number, group in enumerate(fits.values(), 1):
        for plan in group:
            cost = _cost(known.get(plan.identity))
            how_far = f"{plan.identity}  {state[plan.identity]:5}  {number:{width}}  {cost}"
            print(printable(f"{how_far}  {title(plan)}"))
    each = ", ".join(f"{count} {name}" for name, count in sorted(Counter(states).items()))
    print(
        f"{len(plans)} cells: {each}. The number before a cost is that of the fit, with its clean "
        f"and defended passes, that cells share: {len(fits)} in all."
    )
    if known:
        print(_total(left, known))


def _estimates(left: Groups) -> dict[str, Estimate]:
    if not left:
        return {}
    from saebench_recovery.runs.sweep.estimate import estimates  # imports torch

    with progress_bar(wanted=True) as drawn:
        return estimates(left, drawn or silent)


def _cost(estimate: Estimate | None) -> str:
    """A cell alone, in columns."""
    if estimate is None:
        return f"{'':13}  {'':7}"
    work = estimate.before + estimate.attack
    return f"{work.flops:7.1e} FLOPs  {_time(work):>7}"


def _total(left: Groups, known: Mapping[str, Estimate]) -> str:
    from saebench_recovery.runs.sweep.estimate import FEW, Work, in_all

    cells = [plan for group in left for plan in group if plan.identity in known]
    shared = in_all(left, known)
    alone = Work()
    for plan in cells:
        alone += known[plan.identity].before + known[plan.identity].attack
    memory = max(known[plan.identity].memory for plan in cells)
    return (
        f"Estimate for {len(cells)} of them, from up to {FEW} flips of one cell for each kind: "
        f"{shared.flops:.1e} FLOPs and {_time(shared)} of one process, which holds "
        f"{memory / 1e9:.1f} GB; cell by cell it would be {alone.flops:.1e} and {_time(alone)}."
    )


def _time(work: Work) -> str:
    """Such as "8 s", "12 min" or "3.5 h"."""
    seconds = work.seconds
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
