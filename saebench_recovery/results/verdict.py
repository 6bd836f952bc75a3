"""A comparison in words: who recovers more, by how much, and whether that was fair."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_recovery.results.paired import PairedDifference

SIGNIFICANT = 0.05
MEASURES = {"recovery": "of the flips", "constrained": "inside the limits"}


def verdict(
    first: str,
    this: str,
    differences: Sequence[PairedDifference],
    cost: str,
    unequal: Sequence[str],
) -> str:
    """One line on a run beside the first one.

    `differences` are those of this run, `cost` says how the two were matched, and `unequal` names
    everything else in which they were not on equal footing.
    """
    by_measure = {pair.measure: pair for pair in differences}
    amounts = [
        _amount(by_measure[name], words) for name, words in MEASURES.items() if name in by_measure
    ]
    recovery = by_measure.get("recovery")
    if recovery is None:
        return f"{this} and {first}: nothing to compare"
    apart = recovery.p_value < SIGNIFICANT
    more = "more" if recovery.difference > 0 else "less"
    found = f"recovers {more} than {first}" if apart else f"is not told apart from {first}"
    fair = f"not on equal footing: {', '.join(unequal)}" if unequal else "on equal footing"
    return f"{this} {found}: {'; '.join(amounts)}; {cost}, {fair}"


def _amount(pair: PairedDifference, of: str) -> str:
    interval = "" if pair.low is None else f" [{pair.low:+.2f}, {pair.high:+.2f}]"
    return f"{pair.difference:+.2f}{interval} {of} (p = {pair.p_value:.2g})"
