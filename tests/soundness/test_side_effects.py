"""Rule 9: a defense that breaks the model is shown to."""

from __future__ import annotations

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.spec import Limits
from tests.soundness.setting import (
    FEW_LATENTS,
    Idle,
    Zero,
    run,
)
from tests.tiny import WIDTH


class Breaking(Clamp):
    """Stops the behaviour by destroying the residual stream."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)).expand_as(resid_BTD)


def test_a_defense_that_breaks_the_model_is_shown_to() -> None:
    limits = Limits(kl=0.1)
    broken = run(Breaking(Clamp.Config(**FEW_LATENTS)), Zero(), limits=limits).row
    idle = run(Idle(Clamp.Config(**FEW_LATENTS)), Zero(), limits=limits).row
    flags = {"retained-too-low", "neutral-text-changed"}
    assert flags <= set(broken.flag_names)
    assert not flags & set(idle.flag_names)
    effects = idle.side_effects
    assert effects.retain_kept == effects.retain_known == effects.retain_n > 0
    assert idle.side_effects.kl == pytest.approx(0, abs=1e-6)
    assert idle.side_effects.ce_increase == pytest.approx(0, abs=1e-6)
    assert broken.side_effects.retained is not None
    assert broken.side_effects.retained < 0.9
    assert broken.side_effects.kl is not None
    assert broken.side_effects.kl > limits.kl
