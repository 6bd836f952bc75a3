"""Where the recovering deltas act: what each perturbed site and position does by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.parts import PARTS, TINY, Split
from saebench_recovery.runs.attribute.replays import ReplayedParts
from saebench_recovery.schema import Place
from saebench_recovery.scoring.statistics import mean, rate


@dataclass
class _Found:
    """Of one place, a value for each flip whose delta acts there."""

    clusters: list[str] = field(default_factory=list)
    lengths: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    alone: list[bool] = field(default_factory=list)
    without: list[bool] = field(default_factory=list)


def places(chunks: Sequence[tuple[ReplayedParts, Split]]) -> list[Place]:
    """Every site and position, counted from the readout, with intervals over flips.

    The deltas are replayed with what they do there alone, and without it.
    """
    found: dict[tuple[Site, int], _Found] = defaultdict(_Found)
    for replays, split in chunks:
        for site in split.delta.values:
            behind_EP = _behind_readout(replays, split.delta)
            for behind in sorted(set(behind_EP[split.delta.positions_EP >= 0].tolist())):
                at_EP = (behind_EP == behind) & (split.delta.positions_EP >= 0)
                _add(found[site, behind], replays, split, site, at_EP)
    return [
        Place(
            site=str(site),
            behind_readout=behind,
            flips=len(of.clusters),
            lengths={part: mean(values, of.clusters) for part, values in of.lengths.items()},
            alone=rate(of.alone, of.clusters),
            without=rate(of.without, of.clusters),
        )
        for (site, behind), of in sorted(found.items())
    ]


def _behind_readout(replays: ReplayedParts, delta: ResidualDelta) -> Tensor:
    readout_E1 = torch.tensor([[len(example.prompt) - 1] for example in replays.examples])
    return delta.positions_EP - readout_E1.to(delta.positions_EP.device)


def _add(found: _Found, replays: ReplayedParts, split: Split, site: Site, at_EP: Tensor) -> None:
    """Add the flips of a chunk that act at a place, bool [E, P]."""
    delta, acts_E = split.delta, at_EP.any(1).cpu()
    there = _kept(delta, site, at_EP)
    rest = {s: v - there.values[s] for s, v in delta.values.items()}
    whole_E = delta.norm_E().clamp_min(TINY)
    for part in PARTS:
        shares_E = _kept(split.parts[part], site, at_EP).norm_E() / whole_E
        found.lengths[part] += shares_E.cpu()[acts_E].tolist()
    found.alone += replays.works(there)[acts_E].tolist()
    found.without += replays.works(replace(delta, values=rest))[acts_E].tolist()
    records = replays.recovered.records
    found.clusters += [r.cluster or r.id for r, acts in zip(records, acts_E, strict=True) if acts]


def _kept(delta: ResidualDelta, site: Site, at_EP: Tensor) -> ResidualDelta:
    """What a delta does at some positions of a site."""
    kept = {s: v * at_EP[:, :, None] * (s == site) for s, v in delta.values.items()}
    return replace(delta, values=kept)
