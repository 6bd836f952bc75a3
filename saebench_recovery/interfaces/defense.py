"""A defense: an intervention on the residual stream, fitted on the selection split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import Indices
from saebench_recovery.base.sites import Site, SiteName
from saebench_recovery.interfaces.task import Task
from saebench_recovery.monitors.calibration import calibrated
from saebench_recovery.monitors.watched import Watched
from saebench_recovery.sae.latents import Latents
from saebench_recovery.targets.target import Target


class Defense(Watched, ABC, kind="defense"):
    """An intervention on the residual stream that should stop a behaviour.

    `sees_only_latents`: what `intervene` adds depends on the residual only through the defended
    latents' pre-activations (and its norm, where the SAE normalises its input). Where that is
    not so, a constrained attack can keep the latents in place to first order only.
    """

    sees_only_latents: bool = True

    class Config(Watched.Config):
        """What every defense that selects latents can be told."""

        site: SiteName | None = Field(
            default=None, description="hook point; default: the target's own for the task"
        )
        latents: int = Field(default=32, ge=1, description="how many latents are defended")
        features: Indices | None = Field(
            default=None, description="their indices; default: the task's selection"
        )
        include_bos: bool = Field(default=False, description="intervene on BOS too")

    config: Config
    latents: Mapping[Site, Latents]
    scores: Mapping[Site, Tensor]  # the selection scores [S] of `latents`

    def fit(self, target: Target, task: Task) -> None:
        """Choose the defended latents, by default at one site; from the selection split only.

        Raises:
            UserError: see `select`.
        """
        self.defend(target, task, [target.site_for(task.name, self.config.site)])

    @final
    def defend(self, target: Target, task: Task, sites: Sequence[Site]) -> None:
        """Set `latents` and `scores` at each of these sites; see `select`."""
        chosen = {site: self.select(target, task, site) for site in sites}
        self.latents = {site: latents for site, (latents, _) in chosen.items()}
        self.scores = {site: scores for site, (_, scores) in chosen.items()}

    @final
    def select(self, target: Target, task: Task, site: Site) -> tuple[Latents, Tensor]:
        """The latents at a site with the highest scores [S] of the task's selection statistic.

        Latents that are given by their indices all score 1.

        Raises:
            UserError: no latent scores above zero, or there are not so many, or none of that index.
        """
        dictionary = target.dictionary(site)
        asked, width = self.config.latents, dictionary.width
        if self.config.features is not None:
            chosen = torch.tensor(self.config.features)
            scores = torch.ones(len(chosen), device=target.device)
            if chosen.max() >= width:
                raise UserError(f"no latent {chosen.max()} at {site}, which has {width}")
        else:
            if asked > width:
                line = f"{asked} latents asked for at {site}, which has {width}"
                raise UserError(f"{line}; give fewer with -D latents")
            score_M = task.attribution(target, site)
            top = score_M.topk(self.config.latents)
            chosen, scores = top.indices[top.values > 0], top.values[top.values > 0]
        if chosen.numel() == 0:
            raise UserError(f"no latent at {site} scores above zero for task {task.name!r}")
        return dictionary.defended(chosen), scores

    @abstractmethod
    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        """The residual stream as the defense leaves it: pure, differentiable, shape kept."""

    @final
    def watch(self, target: Target, task: Task) -> None:
        """Calibrate its monitor, if it is to have one, once it is fitted.

        Raises:
            UserError: see `calibrated`, or it has a detector of its own.
        """
        if self.config.monitor is not None:
            if type(self).alarm is not Watched.alarm:
                raise UserError(f"{self.title} has a detector of its own; leave out -D monitor")
            selection = task.examples(target, "selection")
            self._monitor = calibrated(self.config.monitor, target, task, self, selection)

    @final
    @property
    def features(self) -> dict[Site, tuple[int, ...]]:
        """Indices of the defended latents per site."""
        return {site: tuple(d.features.tolist()) for site, d in self.latents.items()}
