"""Rule 14: a defense is a function of the residual stream, and what it returns is checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Task
from saebench_recovery.sae.latents import Latents
from saebench_recovery.targets.target import Target
from tests.soundness.setting import (
    FEW_LATENTS,
    orthogonal,
    run,
)


def test_a_defense_that_computes_nan_is_refused() -> None:
    class Nan(Clamp):
        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            return resid_BTD / 0

    with pytest.raises(UserError, match="NaN"):
        run(Nan(Clamp.Config(**FEW_LATENTS)), orthogonal())


def test_a_defense_whose_latents_are_its_own_is_refused() -> None:
    class Shaky(Latents):
        def read(self, resid_BTD: Tensor) -> Tensor:
            return super().read(resid_BTD) + resid_BTD[..., :1].sin()

    class Reads(Clamp):
        def fit(self, target: Target, task: Task) -> None:
            super().fit(target, task)
            self.latents = {s: Shaky(x.dictionary, x.chosen) for s, x in self.latents.items()}

    class Copies(Clamp):
        def fit(self, target: Target, task: Task) -> None:
            super().fit(target, task)
            others = {s: replace(x.dictionary) for s, x in self.latents.items()}
            self.latents = {s: others[s].defended(x.features) for s, x in self.latents.items()}

    for cls in (Reads, Copies):
        with pytest.raises(UserError, match="not the target's own"):
            run(cls(Clamp.Config(**FEW_LATENTS)), orthogonal())


def test_a_defense_that_changes_the_shape_is_refused() -> None:
    class Shorter(Clamp):
        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            return resid_BTD[:, 1:]

    with pytest.raises(UserError, match="wrong-shape"):
        run(Shorter(Clamp.Config(**FEW_LATENTS)), orthogonal())
