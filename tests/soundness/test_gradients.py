"""Rule 13: gradients are not trusted."""

from __future__ import annotations

from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from tests.soundness.setting import (
    FEW_LATENTS,
    orthogonal,
    run,
    standard,
)


def test_an_attack_without_a_gradient_is_flagged() -> None:
    class Detached(Clamp):
        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            return super().intervene(site, resid_BTD.detach())

    row = run(Detached(Clamp.Config(**FEW_LATENTS)), orthogonal()).row
    assert row.examples.valid > 0
    assert "no-gradient" in row.flag_names
    assert "no-gradient" not in standard("orthogonal").row.flag_names
