"""Rule 14: a defense is a function of the residual stream, and what it returns is checked."""

from __future__ import annotations

import pytest
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
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


def test_a_defense_that_changes_the_shape_is_refused() -> None:
    class Shorter(Clamp):
        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            return resid_BTD[:, 1:]

    with pytest.raises(UserError, match="wrong-shape"):
        run(Shorter(Clamp.Config(**FEW_LATENTS)), orthogonal())
