"""`residual-monitor`: the clamp, and a detector of residuals that the SAE explains badly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from saebench_recovery.defenses._clamping import ClampingDefense
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Task
from saebench_recovery.registry import register_defense
from saebench_recovery.selection.latent_scores import content_residuals
from saebench_recovery.targets.target import Target

SHRINKAGE = 0.1  # of the errors' covariance towards a sphere: it keeps unseen directions finite


@register_defense("residual-monitor")
class ResidualMonitor(ClampingDefense):
    """Rings where the SAE's error is unlike the errors of undisturbed text.

    A token's score is the Mahalanobis distance of its error, a prompt's the largest of its content
    tokens'. One half of the selection prompts gives the errors' mean and covariance; the other one
    the threshold, as the quantile of their scores that split conformal prediction asks for: a new
    prompt of their kind exceeds it with probability at most `false_alarms`, whatever the
    distribution.
    """

    class Config(ClampingDefense.Config):
        false_alarms: float = Field(
            default=0.05, gt=0, lt=1, description="share of undisturbed prompts that may ring"
        )

    config: Config
    _mean_D: Tensor
    _whitening_DD: Tensor
    _threshold: Mapping[bool, float]  # of what enters the defense (True), and of what leaves it

    @property
    def false_alarms(self) -> float:
        return self.config.false_alarms

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        (site,) = self.latents
        prompts = [_watched(example) for example in task.examples(target, "selection")]
        known, held_out = prompts[::2], prompts[1::2]
        rank = math.ceil((len(held_out) + 1) * (1 - self.config.false_alarms))
        if rank > len(held_out):
            needed = 2 * (math.ceil(1 / self.config.false_alarms) - 1)
            raise UserError(
                f"residual-monitor needs {needed} selection prompts to promise "
                f"{self.config.false_alarms:g} false alarms, and task {task.name!r} has "
                f"{len(prompts)}; raise -D false_alarms"
            )
        self._learn(target, site, known)
        worst_2E = torch.zeros(2, len(held_out), device=target.device)
        for prompt_N, resid_ND in content_residuals(target, site, held_out):
            passing = (self.intervene(site, resid_ND[None])[0], resid_ND)
            for worst_E, seen_ND in zip(worst_2E, passing, strict=True):
                worst_E.scatter_reduce_(0, prompt_N, self._distance(site, seen_ND), "amax")
        leaving, entering = worst_2E.sort(1).values[:, rank - 1].tolist()
        self._threshold = {True: entering, False: leaving}

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamped(site, resid_BTD)

    def alarm(self, site: Site, resid_BTD: Tensor, *, entering: bool) -> Tensor:
        return self._distance(site, resid_BTD) - self._threshold[entering]

    def _learn(self, target: Target, site: Site, prompts: Sequence[tuple[int, ...]]) -> None:
        """Mean and inverse root of the covariance of the SAE's errors on some prompts."""
        found = [self._error(site, seen) for _, seen in content_residuals(target, site, prompts)]
        error_ND = torch.cat(found).double()
        covariance_DD = torch.cov(error_ND.T)
        floor = SHRINKAGE * covariance_DD.diagonal().mean().clamp(min=1e-12)
        covariance_DD.diagonal().add_(floor)
        root_DD = torch.linalg.cholesky(covariance_DD)
        self._mean_D = error_ND.mean(0).float()
        self._whitening_DD = torch.linalg.inv(root_DD).T.float()

    def _error(self, site: Site, resid: Tensor) -> Tensor:
        x = resid.float()
        return x - self.latents[site].dictionary.reconstruct(x)

    def _distance(self, site: Site, resid: Tensor) -> Tensor:
        """Mahalanobis distance [...] of the SAE's error from undisturbed ones."""
        centred = self._error(site, resid) - self._mean_D
        distance: Tensor = (centred @ self._whitening_DD).norm(dim=-1)
        return distance


def _watched(example: Example) -> tuple[int, ...]:
    """The prompt, with the behaviour's answer where answers are teacher-forced."""
    forced = any(len(answer) > 1 for answer in example.candidates)
    return (*example.prompt, *(example.candidates[0] if forced else ()))
