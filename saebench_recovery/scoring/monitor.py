"""What a defense's detector says of perturbed prompts, and how often it rings for nothing.

It watches the content tokens of an example's first row: the prompt and, where answers are
teacher-forced, the behaviour's own. Text that a model generates is not watched.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Perturbation, ResidualDelta
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.forward import content, forward
from saebench_recovery.schema import Rate
from saebench_recovery.scoring import statistics
from saebench_recovery.scoring.passes import CHUNK

KEPT = 16  # undisturbed examples of which a detector is asked again, beside perturbed ones


@dataclass(frozen=True)
class Shown:
    """What a detector is shown of an example [T, D] at each site, and whether it rang."""

    resid: Mapping[Site, Tensor]
    watched_T: Tensor
    rang: bool


@dataclass(frozen=True)
class FalseAlarms:
    """How often a detector rings on undisturbed examples, and what it was shown of some."""

    counted: Rate
    some: Sequence[Shown]


def rings(active: DefendedModel, batch: Batch, trace: Trace) -> Tensor | None:
    """Whether the detector rings on a traced pass, bool [E]; None for a defense without one.

    Under `reclamp` it sees what enters the defense, under `post` what leaves the site.
    """
    defense = active.defense
    if defense is None or not _has_detector(active):
        return None
    entering = active.threat_model == "reclamp"
    seen, watched_EQ = _seen(active, batch, trace)
    ringing = [defense.alarm(s, seen[s], entering=entering) > 0 for s in defense.latents]
    return (torch.stack(ringing).any(0) & watched_EQ).any(1)


@torch.no_grad()
def false_alarms(active: DefendedModel, examples: Sequence[Example]) -> FalseAlarms | None:
    """On how many undisturbed examples the detector rings; None for a defense without one.

    Those of which it is asked again are drawn so that nobody can know them before.
    """
    if not _has_detector(active):
        return None
    drawn = random.SystemRandom().sample(range(len(examples)), min(KEPT, len(examples)))
    alarmed: list[bool] = []
    some: list[Shown] = []
    for begin in range(0, len(examples), CHUNK):
        batch, trace = _passed(active, examples[begin : begin + CHUNK])
        rang = _rang(active, batch, trace).tolist()
        own = [e - begin for e in sorted(drawn) if begin <= e < begin + len(rang)]
        some += shown(active, batch, trace, rang, own)
        alarmed += rang
    return FalseAlarms(statistics.rate(alarmed, [e.cluster or e.id for e in examples]), some)


@torch.no_grad()
def alarms(
    active: DefendedModel, examples: Sequence[Example], perturbation: Perturbation
) -> Tensor | None:
    """Whether the detector rings on perturbed examples, bool [E]; None for a defense without one.

    What a replay says of them, by a pass that ends at the last defended site.
    """
    if not _has_detector(active):
        return None
    return _rang(active, *_perturbed(active, examples, perturbation))


@torch.no_grad()
def attacked(
    active: DefendedModel,
    examples: Sequence[Example],
    perturbation: Perturbation,
    rang: Sequence[bool],
) -> list[Shown]:
    """What the detector is shown of perturbed examples, of which it has said `rang`."""
    passed = _perturbed(active, examples, perturbation)
    return shown(active, *passed, rang, range(len(examples)))


def shown(
    active: DefendedModel,
    batch: Batch,
    trace: Trace,
    rang: Sequence[bool],
    rows: Sequence[int],
) -> list[Shown]:
    """Of some examples of a traced pass, up to the last token that is watched."""
    seen, watched_EQ = _seen(active, batch, trace)
    ends = {e: int(watched_EQ[e].nonzero()[-1:].sum()) + 1 for e in rows}
    return [
        Shown(
            {site: resid_EQD[e, :end].clone() for site, resid_EQD in seen.items()},
            watched_EQ[e, :end],
            rang[e],
        )
        for e, end in ends.items()
    ]


@torch.no_grad()
def says_otherwise(active: DefendedModel, prompts: Sequence[Shown]) -> list[bool]:
    """Of which prompts the detector now says something else, all of them asked in one call.

    Each stands there twice, in random order and moved by as much as rounding does: nothing but the
    residual tells which are perturbed, and none is one that was seen before.
    """
    assert active.defense is not None
    noise = torch.Generator().manual_seed(secrets.randbits(32))
    twice = [*prompts, *prompts]
    order = torch.randperm(len(twice), generator=noise)
    rows = [twice[i] for i in order.tolist()]
    watched_BT = pad_sequence([row.watched_T for row in rows], batch_first=True)
    rang_B = torch.zeros_like(watched_BT[:, 0])
    for site in active.defense.latents:
        near = [nudged(row.resid[site], noise) for row in rows]
        resid_BTD = pad_sequence(near, batch_first=True)
        entering = active.threat_model == "reclamp"
        suspicion_BT = active.defense.alarm(site, resid_BTD, entering=entering)
        rang_B |= ((suspicion_BT > 0) & watched_BT).any(1)
    both_2E = rang_B.cpu()[order.argsort()].view(2, -1)
    was_E = torch.tensor([prompt.rang for prompt in prompts])
    otherwise: list[bool] = (both_2E != was_E).all(0).tolist()
    return otherwise


def nudged(resid_TD: Tensor, drawn: torch.Generator) -> Tensor:
    """A residual moved by as much as rounding moves it."""
    noise_TD = torch.randn(resid_TD.shape, generator=drawn).to(resid_TD)
    return resid_TD + noise_TD * resid_TD.abs().mean(-1, keepdim=True) * 1e-6


def _has_detector(active: DefendedModel) -> bool:
    return active.defense is not None and active.defense.false_alarms is not None


def _seen(active: DefendedModel, batch: Batch, trace: Trace) -> tuple[dict[Site, Tensor], Tensor]:
    """Each example's first row at the defended sites, and which of its tokens are watched."""
    C = batch.rows_per_example
    seen = trace.before if active.threat_model == "reclamp" else trace.after
    assert active.defense is not None
    rows = {site: seen[site][::C] for site in active.defense.latents}
    return rows, content(active.target, batch)[::C]


def _perturbed(
    active: DefendedModel, examples: Sequence[Example], perturbation: Perturbation
) -> tuple[Batch, Trace]:
    perturbed, delta = perturbation.applied(examples)
    return _passed(active.with_weights(perturbation.weights()), perturbed, delta)


def _passed(
    active: DefendedModel, examples: Sequence[Example], delta: ResidualDelta | None = None
) -> tuple[Batch, Trace]:
    """A pass that ends at the last defended site."""
    assert active.defense is not None
    batch, trace = active.target.batch(examples), Trace()
    edits = active.edits(batch, delta, trace)
    forward(active.target, batch, edits, pool=max(active.defense.latents))
    return batch, trace


def _rang(active: DefendedModel, batch: Batch, trace: Trace) -> Tensor:
    alarmed_E = rings(active, batch, trace)
    assert alarmed_E is not None
    return alarmed_E
