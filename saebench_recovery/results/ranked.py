"""Defenses that may be compared, ranked by the behaviour under attack; ties share a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
from pydantic import Field

from saebench_recovery.results.entry import Entry, Scored, labels
from saebench_recovery.results.standings import (
    Contender,
    DefenseStanding,
    Demand,
    contender,
    counted_attacks,
)
from saebench_recovery.schema import Count, Finite, Share, Stored
from saebench_recovery.scoring.clusters import totals
from saebench_recovery.scoring.intervals import design_effect
from saebench_recovery.scoring.paired import paired
from saebench_recovery.scoring.power import flips_to_separate
from saebench_recovery.scoring.ranking import LEVEL, holm, ranks


class Pair(Stored):
    """Two ranked defenses on the base examples that both were scored on."""

    first: str
    second: str
    examples: Count = Field(description="each once for every seed that both were run with")
    difference: Finite = Field(description="of the behaviour under attack, second less first")
    low: Finite | None
    high: Finite | None
    p_value: Share = Field(description="two-sided, by `method`")
    adjusted: Share = Field(description="the same after Holm, for all pairs of the board")
    method: str


def ranked(
    entries: Sequence[Scored],
) -> tuple[tuple[DefenseStanding, ...], tuple[Pair, ...], tuple[str, ...]]:
    """The standings of one group, the most robust first and what has no rank last.

    Also every pair of ranked defenses, and the attacks that the ranks go by.
    """
    table, demand = _table(entries)
    contenders = [contender(defense, of_attack, demand) for defense, of_attack in table.items()]
    in_order = sorted(contenders, key=_robustness)
    compared = [one for one in in_order if not one.standing.unranked]
    pairs = _pairs(compared)
    # Rates are of all seeds of each, tests of common ones: both must find the same one better.
    adjusted = {(pair.first, pair.second): pair.adjusted for pair in pairs if pair.difference > 0}
    rank_of = ranks({one.standing.defense: _rate(one) for one in compared}, adjusted)
    needed = _needed(compared, adjusted)
    standings = [
        one.standing.model_copy(
            update={
                "rank": rank_of.get(one.standing.defense),
                "examples_to_separate": needed.get(one.standing.defense),
            }
        )
        for one in [*compared, *(one for one in in_order if one.standing.unranked)]
    ]
    return tuple(standings), pairs, demand.counted


def _table(
    entries: Sequence[Scored],
) -> tuple[dict[str, dict[str, list[Scored]]], Demand]:
    """Entries by the labels of defense and attack, at most one for each target and seed."""
    every = [scored.entry for scored in entries]
    attacks = labels(every, "attack")
    table: dict[str, dict[str, dict[tuple[str, int], Scored]]] = {}
    for scored, defense, attack in zip(entries, labels(every, "defense"), attacks, strict=True):
        cells = table.setdefault(defense, {}).setdefault(attack, {})
        cell = scored.row.task, scored.row.seed
        if cell not in cells or _damning(scored) > _damning(cells[cell]):
            cells[cell] = scored
    counted = counted_attacks(entries, attacks)
    pairs = zip(every, attacks, strict=True)
    seeds = [entry.row.seed for entry, attack in pairs if attack in counted]
    demand = Demand(
        tasks=tuple(sorted({entry.row.task for entry in every})),
        attacks=tuple(sorted(set(attacks))),
        counted=counted,
        first_seed=min(seeds or [entry.row.seed for entry in every]),
    )
    return {
        name: {a: [cells[cell] for cell in sorted(cells)] for a, cells in of_attack.items()}
        for name, of_attack in table.items()
    }, demand


def _damning(scored: Scored) -> tuple[bool, float]:
    """Of two runs of the same attack (on two devices, say) the worse for the defense counts.

    Worst is one that is invalid: whoever repeats a run cannot choose the one without the flag.
    """
    invalid = any(flag.level == "invalid" for flag in scored.row.flags)
    return invalid, scored.row.under_attack.rate or 0


def _robustness(one: Contender) -> tuple[float, str]:
    return _rate(one), one.standing.defense


def _rate(one: Contender) -> float:
    """The behaviour under attack; with nothing counted it is no better than the worst."""
    rate = one.standing.under_attack.rate
    return 1.0 if rate is None else rate


def _pairs(contenders: Sequence[Contender]) -> tuple[Pair, ...]:
    found = []
    for first, second in combinations(contenders, 2):
        common = sorted(first.outcomes.keys() & second.outcomes.keys())
        result = paired(
            [first.outcomes[id].shows for id in common],
            [second.outcomes[id].shows for id in common],
            [first.outcomes[id].cluster for id in common],
            max(1, len({seed for seed, _, _ in common})),
        )
        if result is not None:
            found.append((first.standing.defense, second.standing.defense, result))
    adjusted = holm([result.p_value for _, _, result in found])
    return tuple(
        Pair(
            first=first,
            second=second,
            examples=result.pairs,
            difference=result.difference,
            low=result.low,
            high=result.high,
            p_value=result.p_value,
            adjusted=one,
            method=result.method,
        )
        for (first, second, result), one in zip(found, adjusted, strict=True)
    )


def _needed(
    contenders: Sequence[Contender], adjusted: Mapping[tuple[str, str], float]
) -> dict[str, int | None]:
    """For each defense that is not told from the one before it, examples that would do so."""
    return {
        second.standing.defense: flips_to_separate(
            _rate(first), _rate(second), max(_design(first), _design(second))
        )
        for first, second in pairwise(contenders)
        if adjusted.get((first.standing.defense, second.standing.defense), 1.0) > LEVEL
    }


def _design(contender: Contender) -> float:
    """How much less a base example says than an independent one, all its seeds together."""
    of_all = contender.outcomes.values()
    values = np.array([o.shows for o in of_all], dtype=np.float64)
    total_M, size_M = totals(values, [o.cluster for o in of_all])
    seeds = len(contender.standing.seeds)
    return float(design_effect(total_M / seeds, size_M / seeds))


def in_order(entries: Sequence[Scored]) -> tuple[Entry, ...]:
    """The entries themselves, in an order that the runs' own does not change."""
    every = (scored.entry for scored in entries)
    return tuple(sorted(every, key=lambda entry: (entry.row.task, entry.identity)))
