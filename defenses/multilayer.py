"""`multilayer`: the clamp at several sites, each with latents of its own."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from saebench_recovery.defenses._clamping import ClampingDefense
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site, SiteName
from saebench_recovery.interfaces import Task
from saebench_recovery.registry import register_defense
from saebench_recovery.targets.target import Target


@register_defense("multilayer")
class Multilayer(ClampingDefense):
    """Clamps at every site the latents that the task's statistic selects there.

    A perturbation at the first site has to pass the clamps behind it as well.
    """

    class Config(ClampingDefense.Config):
        sites: tuple[SiteName, ...] | None = Field(
            default=None,
            min_length=2,
            description="hook points; default: the task's own and all later ones with an SAE",
        )

        @model_validator(mode="after")
        def _selected_per_site(self) -> Self:
            if self.features is not None:
                raise ValueError("features are indices at one site; multilayer has several")
            if self.site is not None and self.sites is not None:
                raise ValueError("give site (the first one) or sites, not both")
            return self

    config: Config

    def fit(self, target: Target, task: Task) -> None:
        first = target.site_for(task.name, self.config.site)
        if self.config.sites is None:
            sites = [first, *target.sites_after(first, task.pool)]
        else:
            sites = sorted({Site.parse(name) for name in self.config.sites})
        if task.pool is not None and max(sites) > task.pool:
            raise UserError(
                f"task {task.name!r} reads {task.pool}: a later site does nothing to it"
            )
        if len(sites) < 2:
            raise UserError(
                f"multilayer needs two sites with an SAE, and {target.name} has none after {first} "
                f"that task {task.name!r} passes; name earlier ones with -D sites=[...]"
            )
        self.defend(target, task, sites)

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamped(site, resid_BTD)
