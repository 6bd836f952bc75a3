"""`residual-monitor`: the clamp, and a detector of residuals that the SAE explains badly."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from saebench_recovery.errors import UserError
from saebench_recovery.interfaces import Example, Task
from saebench_recovery.recovery.attribution import content_residuals
from saebench_recovery.recovery.clamp import ClampingDefense
from saebench_recovery.registry import register_defense
from saebench_recovery.sites import Site
from saebench_recovery.target.latents import SMALLEST_NORM
from saebench_recovery.target.target import Target


@register_defense("residual-monitor")
class ResidualMonitor(ClampingDefense):
    """Rings where the SAE's error is a larger share of the residual than it should be.

    The score of a prompt is the largest of its content tokens'. Its threshold is the quantile of
    the selection prompts' scores that split conformal prediction asks for: a new prompt of their
    kind exceeds it with probability at most `false_alarms`, whatever their distribution.
    """

    class Config(ClampingDefense.Config):
        false_alarms: float = Field(
            default=0.05, gt=0, lt=1, description="share of undisturbed prompts that may ring"
        )

    config: Config
    _threshold: Mapping[bool, float]  # of what enters the defense (True), and of what leaves it

    @property
    def false_alarms(self) -> float:
        return self.config.false_alarms

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        (site,) = self.latents
        prompts = [_watched(example) for example in task.examples(target, "selection")]
        rank = math.ceil((len(prompts) + 1) * (1 - self.config.false_alarms))
        if rank > len(prompts):
            needed = math.ceil(1 / self.config.false_alarms) - 1
            raise UserError(
                f"residual-monitor needs {needed} selection prompts to promise "
                f"{self.config.false_alarms:g} false alarms, and task {task.name!r} has "
                f"{len(prompts)}; raise -D false_alarms"
            )
        worst_2E = torch.zeros(2, len(prompts), device=target.device)
        for prompt_N, resid_ND in content_residuals(target, site, prompts):
            passing = (self.intervene(site, resid_ND[None])[0], resid_ND)
            for worst_E, seen_ND in zip(worst_2E, passing, strict=True):
                worst_E.scatter_reduce_(0, prompt_N, self._error(site, seen_ND), "amax")
        leaving, entering = worst_2E.sort(1).values[:, rank - 1].tolist()
        self._threshold = {True: entering, False: leaving}

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamped(site, resid_BTD)

    def alarm(self, site: Site, resid_BTD: Tensor, *, entering: bool) -> Tensor:
        return self._error(site, resid_BTD) - self._threshold[entering]

    def _error(self, site: Site, resid: Tensor) -> Tensor:
        """Norm of the SAE's error relative to the residual's, [...]."""
        dictionary, x = self.latents[site].dictionary, resid.float()
        error: Tensor = (x - dictionary.decode(dictionary.encode(x), x)).norm(dim=-1)
        size: Tensor = x.norm(dim=-1).clamp(min=SMALLEST_NORM)
        return error / size


def _watched(example: Example) -> tuple[int, ...]:
    """The prompt, with the behaviour's answer where answers are teacher-forced."""
    forced = any(len(answer) > 1 for answer in example.candidates)
    return (*example.prompt, *(example.candidates[0] if forced else ()))
