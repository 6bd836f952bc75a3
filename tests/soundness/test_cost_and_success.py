"""Rule 16: an attack neither reports its own success nor sets its own budget or cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import (
    Attack,
    Perturbation,
    ResidualDelta,
)
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from tests.soundness.setting import (
    BUDGET,
    LATER_SITE,
    SITE,
    clamp,
    run,
    standard,
)


class Overspending(Attack):
    """Returns a delta far too long."""

    def search(self, problem: Problem) -> ResidualDelta:
        zeros = problem.zeros()
        return replace(zeros, values={s: v + 1e3 for s, v in zeros.values.items()})


class Bribing(Overspending):
    """Also raises its own budget."""

    def search(self, problem: Problem) -> ResidualDelta:
        problem.budget_N.mul_(1e3)
        return super().search(problem)


class Stretching(Overspending):
    """Stretches the unit that its budget is measured in."""

    def search(self, problem: Problem) -> ResidualDelta:
        Residual.of(problem).units[SITE].mul_(1e3)
        return super().search(problem)


class Lawless(Overspending):
    """Replaces the driver that clips."""

    def run(self, problem: Problem, *, shortest: bool = False) -> ResidualDelta:  # type: ignore[misc]
        return self.search(problem)


@pytest.mark.parametrize(
    "attack",
    [Overspending(), Bribing(), Lawless(), Stretching()],
    ids=type,
)
def test_an_attack_that_overspends_is_clipped(attack: Attack) -> None:
    scored = run(clamp(), attack)
    norm_E = scored.headline().norm_E()
    assert norm_E is not None
    allowed_E = torch.full_like(norm_E, BUDGET * scored.row.spreads[str(SITE)].value)
    torch.testing.assert_close(norm_E, allowed_E, rtol=1e-5, atol=0)
    assert scored.row.norm.max is not None
    assert scored.row.norm.max <= BUDGET * (1 + 1e-5)


def misplaced(problem: Problem, **changes: Any) -> ResidualDelta:
    return replace(problem.zeros(), **changes)


CHEATS: Mapping[str, Callable[[Problem], Any]] = {
    "other positions": lambda p: misplaced(p, positions_EP=p.positions_NP - 1),
    "other sites": lambda p: misplaced(p, values={LATER_SITE: p.zeros().values[SITE]}),
    "more sites": lambda p: misplaced(
        p, values={**p.zeros().values, LATER_SITE: p.zeros().values[SITE]}
    ),
    "NaN": lambda p: misplaced(p, values={SITE: p.zeros().values[SITE] / 0}),
    "infinity": lambda p: misplaced(p, values={SITE: p.zeros().values[SITE] + torch.inf}),
    "other examples": lambda p: p.zeros().rows(torch.arange(1)),
    "another width": lambda p: misplaced(p, values={SITE: p.zeros().values[SITE][..., :1]}),
    "another type": lambda p: "it worked",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_an_attack_that_returns_something_else_is_refused(cheat: str) -> None:
    class Cheat(Attack):
        def search(self, problem: Problem) -> Perturbation:
            returned: Perturbation = CHEATS[cheat](problem)
            return returned

    with pytest.raises(UserError, match="attack"):
        run(clamp(), Cheat())


def test_attack_and_scoring_are_billed_apart() -> None:
    idle, busy = standard("nothing").row.compute, standard("orthogonal").row.compute
    brief = run(clamp(), Orthogonal(Orthogonal.Config(steps=2)), limit=None).row.compute
    assert idle.attack.backward == 0
    assert busy.attack.backward > 0
    assert busy.attack.flops > idle.attack.flops
    assert idle.scoring.forward > 0
    assert busy.attack.backward > brief.attack.backward
    assert busy.scoring.backward == brief.scoring.backward  # what the attack did is not in it
