"""A detector on a fitted defense, calibrated so that it rings for nothing at a stated rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.examples import Example
from saebench_recovery.model.forward import content, forward
from saebench_recovery.model.hooks import kinds
from saebench_recovery.model.roles import Intervention, Judge
from saebench_recovery.monitors.detector import Detector, Score, Undisturbed
from saebench_recovery.monitors.error import error
from saebench_recovery.monitors.mahalanobis import mahalanobis
from saebench_recovery.monitors.probe import probe
from saebench_recovery.selection.latent_scores import CHUNK, TOKENS
from saebench_recovery.targets.target import Target

MonitorName = Literal["error", "mahalanobis", "probe"]
DETECTORS: Mapping[MonitorName, Detector] = {
    "error": error,
    "mahalanobis": mahalanobis,
    "probe": probe,
}
# A token that set the threshold and comes again must not ring by rounding.
MARGIN = 1e-4


@dataclass(frozen=True, eq=False)
class Monitor:
    """A score at each defended site, and the threshold above which it rings.

    One threshold for what enters the defense (True), and one for what leaves it.
    """

    scores: Mapping[Site, Score]
    thresholds: Mapping[bool, float]

    def alarm(self, site: Site, resid_BTD: Tensor, *, entering: bool) -> Tensor:
        """Suspicion [B, T] above the threshold."""
        return self.scores[site](resid_BTD) - self.thresholds[entering]


def calibrated(
    name: MonitorName,
    target: Target,
    task: Judge,
    defense: Intervention,
    examples: Sequence[Example],
) -> Monitor:
    """Learn on one half of the selection examples, and set the thresholds on the other.

    A prompt's score is the largest of its content tokens' at any defended site. The threshold is
    the quantile that split conformal prediction asks for (Vovk, Gammerman and Shafer,
    "Algorithmic Learning in a Random World", 2005): a new prompt of their kind exceeds it with
    probability at most the stated rate, whatever the distribution.

    Raises:
        UserError: too few selection examples for that rate.
    """
    stated = float(defense.config.false_alarms)
    known, held_out = examples[::2], examples[1::2]
    rank = math.ceil((len(held_out) + 1) * (1 - stated))
    if rank > len(held_out):
        raise UserError(
            f"a monitor needs {2 * (math.ceil(1 / stated) - 1)} selection prompts to promise "
            f"{stated:g} false alarms, and task {task.name!r} has {len(examples)}; raise "
            "-D false_alarms"
        )
    active = DefendedModel(target, defense)
    scores = {
        site: DETECTORS[name](_undisturbed(active, task, known, site)) for site in defense.latents
    }
    worst_2E = torch.full((2, len(held_out)), -torch.inf, device=target.device)
    for prompt_N, seen in _passing(active, [_watched(example) for example in held_out]):
        for site, sides in seen.items():
            for worst_E, resid_ND in zip(worst_2E, sides, strict=True):
                worst_E.scatter_reduce_(0, prompt_N, scores[site](resid_ND), "amax")
    worst_2 = worst_2E.sort(1).values[:, rank - 1]
    entering, leaving = (worst_2 + MARGIN * worst_2.abs()).tolist()
    return Monitor(scores, {True: entering, False: leaving})


@torch.no_grad()
def _passing(
    active: DefendedModel, prompts: Sequence[tuple[int, ...]]
) -> Iterator[tuple[Tensor, dict[Site, tuple[Tensor, Tensor]]]]:
    """Content tokens around the defense: the prompt [N] of each, and residuals [N, D] per site."""
    target, last = active.target, max(active.latents)
    for begin in range(0, len(prompts), CHUNK):
        chunk = prompts[begin : begin + CHUNK]
        batch, trace = target.batch([Example("", ids, ((0,),)) for ids in chunk]), Trace()
        forward(target, batch, active.edits(batch, trace=trace), pool=last)
        keep_RQ = content(target, batch)
        prompt_N = begin + keep_RQ.nonzero()[:, 0]
        for tokens in torch.split(torch.arange(len(prompt_N), device=prompt_N.device), TOKENS):
            yield (
                prompt_N[tokens],
                {
                    site: (trace.before[site][keep_RQ][tokens], trace.after[site][keep_RQ][tokens])
                    for site in active.latents
                },
            )


def _undisturbed(
    active: DefendedModel, task: Judge, examples: Sequence[Example], site: Site
) -> Undisturbed:
    """What enters the defense at a site, and the objective's gradient there."""
    resid, pull = [], []
    for begin in range(0, len(examples), CHUNK):
        batch = active.target.batch(examples[begin : begin + CHUNK])
        edits = dict(active.edits(batch))
        own, entering = edits[site], []

        def watch(resid_RQD: Tensor) -> Tensor:
            entering.append(resid_RQD.detach().requires_grad_())  # noqa: B023
            return own(entering[0])  # noqa: B023

        watch.kind = tuple(kinds({site: own}))  # type: ignore[attr-defined]  # what its own edit costs
        with torch.enable_grad():
            alone = replace(batch, apart=True)
            output = forward(active.target, alone, {**edits, site: watch}, pool=task.pool)
            (grad_RQD,) = torch.autograd.grad(task.objective(output).sum(), entering)
        C = batch.rows_per_example
        keep_EQ = content(active.target, batch)[::C]
        resid.append(entering[0].detach()[::C][keep_EQ].float())
        pull.append(grad_RQD[::C][keep_EQ].float())
    latents = active.defense.latents[site] if active.defense else None
    assert latents is not None
    return Undisturbed(latents.dictionary, torch.cat(resid), torch.cat(pull))


def _watched(example: Example) -> tuple[int, ...]:
    """The prompt, with the behaviour's answer where answers are teacher-forced."""
    forced = any(len(answer) > 1 for answer in example.candidates)
    return (*example.prompt, *(example.candidates[0] if forced else ()))
