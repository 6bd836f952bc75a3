"""Which part of a delta carries its effect: alone, knocked out, and at one norm, with controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from torch import Tensor

from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.parts import NOTHING, PARTS, WHOLE, Split, scaled
from saebench_recovery.schema import Contrast, DeltaEffect, PartEffect, Rate, Source
from saebench_recovery.scoring.paired import Value, paired
from saebench_recovery.scoring.statistics import mean, rate

T = TypeVar("T")
Works = Callable[[ResidualDelta], Tensor]
"""Whether each delta works under the active defense, bool [E], judged by the task's detector."""

Verdicts = dict[str, list[bool | None]]
"""Of each replay, a verdict per flip; None where there is nothing to replay."""

FULL = "full"
Names = tuple[str, ...]


def replayed(works: Works, split: Split, smallest_E: Tensor) -> Verdicts:
    """Replay a delta's parts: alone, knocked out, and rescaled.

    Args:
        works: judges deltas of these flips.
        split: the deltas and their parts.
        smallest_E: the smallest norm at which each delta works; NaN where none does.
    """
    found: Verdicts = {FULL: works(split.delta).tolist()}
    full_E = split.delta.norm_E()
    for part in PARTS:
        there, own = split.present_E(part), split.parts[part]
        measurable = there & ~smallest_E.isnan()
        at_smallest = smallest_E.nan_to_num()
        for name, delta, defined_E in (
            (f"alone {part}", own, there),
            (f"without {part}", split.without(part), there),
            (f"full {part}", scaled(own, full_E), there),
            (f"full random {part}", scaled(split.random[part], full_E), there),
            (f"smallest {part}", scaled(own, at_smallest), measurable),
            (f"smallest random {part}", scaled(split.random[part], at_smallest), measurable),
        ):
            found[name] = _judged(works, delta, defined_E)
    return found


def _judged(works: Works, delta: ResidualDelta, defined_E: Tensor) -> list[bool | None]:
    if not defined_E.any():
        return [None] * len(defined_E)
    pairs = zip(works(delta).tolist(), defined_E.tolist(), strict=True)
    return [bool(verdict) if defined else None for verdict, defined in pairs]


def joined(chunks: Sequence[Mapping[str, Sequence[T]]]) -> dict[str, list[T]]:
    """The columns of several chunks of flips behind one another."""
    return {name: list(chain(*(chunk[name] for chunk in chunks))) for name in chunks[0]}


def effect(
    source: Source,
    verdicts: Verdicts,
    lengths: Mapping[str, Sequence[float]],
    clusters: Sequence[str],
) -> DeltaEffect:
    """Rates, Shapley values and a verdict from the replays of one kind of deltas.

    `lengths` are the norms of each part, relative to the delta's. The Shapley value (Shapley 1953,
    "A value for n-person games") of a part is what it adds to the verdict, averaged over the orders
    in which the three parts can be put together: over flips the values add up to the share of whole
    deltas that work. They need no further replay, as with three parts each pair is a knock-out. A
    part that is zero adds nothing.
    """
    share = shapley(verdicts)
    carriers = carrying(share, clusters)

    def counted(name: str) -> Rate:
        pairs = zip(verdicts.get(name, ()), clusters, strict=False)
        known = [(v, c) for v, c in pairs if v is not None]
        return rate([v for v, _ in known], [c for _, c in known])

    parts = tuple(
        PartEffect(
            part=part,
            length=mean(lengths[part], clusters),
            alone=counted(f"alone {part}"),
            without=counted(f"without {part}"),
            share=mean(share[part], clusters) if part in WHOLE else None,
            at_full_norm=counted(f"full {part}"),
            random_at_full_norm=counted(f"full random {part}"),
            at_smallest_norm=counted(f"smallest {part}"),
            random_at_smallest_norm=counted(f"smallest random {part}"),
        )
        for part in PARTS
    )
    works = counted(FULL)
    return DeltaEffect(
        source=source,
        works=works,
        later_residual_held=counted("later residual held"),
        later_latents_held=counted("later latents held"),
        parts=parts,
        carriers=carriers,
        verdict=_verdict(source, works, parts, carriers),
    )


def shapley(verdicts: Verdicts) -> dict[str, list[float]]:
    """The Shapley value of each whole part, flip by flip."""
    flips = range(len(verdicts[FULL]))
    value: dict[str, list[float]] = {part: [] for part in WHOLE}
    for e in flips:
        whole = float(bool(verdicts[FULL][e]))
        # A part that is zero is nothing alone, and the delta is whole without it.
        alone, without = (
            {p: empty if (v := verdicts[f"{how} {p}"][e]) is None else float(v) for p in WHOLE}
            for how, empty in (("alone", 0.0), ("without", whole))
        )
        for part in WHOLE:
            others = [other for other in WHOLE if other != part]
            pairs = sum(without[third] - alone[other] for other, third in _orders(others))
            value[part].append(alone[part] / 3 + pairs / 6 + (whole - without[part]) / 3)
    return value


def _orders(others: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Either of two others as the one that is there already, and the one that is not."""
    yield others[0], others[1]
    yield others[1], others[0]


def carrying(share: Mapping[str, Sequence[float]], clusters: Sequence[str]) -> Names:
    """The part with the largest share, and those that are not told apart from it.

    None where no part's share is above zero. Two parts are told apart where the interval of
    their paired difference leaves out zero.
    """
    means = {part: mean(values, clusters) for part, values in share.items()}
    known = {part: m.mean for part, m in means.items() if m.mean is not None}
    if not known:
        return ()
    best = max(known, key=lambda part: known[part])
    low = means[best].low
    if low is None or low <= 0:
        return ()
    kept = [best]
    for part in known:
        if part != best:
            gap = paired(share[part], share[best], clusters)
            if gap is None or gap.low is None or gap.low <= 0:
                kept.append(part)
    return tuple(part for part in WHOLE if part in kept)


def contrasts(
    recovering: Verdicts, injecting: Verdicts, clusters: Sequence[str]
) -> Iterator[Contrast]:
    """What decides whether the residual carries recovery: pairs of figures of the same flips."""
    mine, wrong = shapley(recovering), shapley(injecting)
    for part in ("other", "residual"):
        name = f"share of {NAMES[part]}"
        yield from _contrast(
            (f"{name}, wrong answer", wrong[part]), (f"{name}, recovery", mine[part]), clusters
        )
    at_full = {part: recovering[f"full {part}"] for part in ("other", "residual")}
    names = {part: f"{NAMES[part]} at the full norm" for part in at_full}
    for part, values in at_full.items():
        there = recovering[f"full random {part}"]
        yield from _contrast(
            (f"a random direction in the subspace of {names[part]}", there),
            (names[part], values),
            clusters,
        )
    yield from _contrast(
        (names["other"], at_full["other"]), (names["residual"], at_full["residual"]), clusters
    )


def _contrast(
    first: tuple[str, Sequence[Value]], second: tuple[str, Sequence[Value]], clusters: Sequence[str]
) -> Iterator[Contrast]:
    found = paired(first[1], second[1], clusters)
    if found is not None:
        yield Contrast(
            first=first[0],
            second=second[0],
            difference=found.difference,
            low=found.low,
            high=found.high,
            p_value=found.p_value,
        )


NAMES = {
    "clamped": "the clamped latents",
    "other": "the other latents",
    "residual": "the SAE residual",
}


def _verdict(source: Source, works: Rate, parts: Sequence[PartEffect], carriers: Names) -> str:
    count = f"{works.k} of {works.n} {source} deltas work"
    if not carriers:
        return f"{count}: no part is told apart from nothing"
    there = [p.part for p in parts if p.part in WHOLE and (p.length.max or 0) > NOTHING]
    named = " and ".join(NAMES[part] for part in carriers)
    if len(carriers) > 1 and set(carriers) >= set(there):
        return f"{count}: nothing distinguishes {named}"
    return f"{count}: carried by {named}" + (", not told apart" if len(carriers) > 1 else "")
