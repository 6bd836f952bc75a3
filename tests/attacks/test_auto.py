"""The standard suite breaks a defense that hides its gradient as it breaks the honest one."""

from __future__ import annotations

from functools import cache

import pytest
from saebench_recovery.attacks.auto import AutoV2
from saebench_recovery.defenses.clamp import Clamp

from tests.attacks.test_straight_through import WEAK, Detached, Negated
from tests.journal import Scored
from tests.soundness.setting import run


@cache
def under_auto(kind: type[Clamp]) -> Scored:
    return run(kind(WEAK), AutoV2())


@pytest.mark.parametrize(
    ("kind", "finding"), [(Negated, "gradient-dishonest"), (Detached, "no-gradient")]
)
def test_a_masked_gradient_does_not_keep_it_off(kind: type[Clamp], finding: str) -> None:
    honest, masked = under_auto(Clamp).row, under_auto(kind).row
    assert honest.constrained.k > 0.9 * honest.constrained.n
    assert masked.constrained.k >= honest.constrained.k - 0.05 * honest.constrained.n
    assert finding in masked.flag_names


def test_members_say_what_each_broke_and_none_that_nothing_was_left_for() -> None:
    row = under_auto(Negated).row
    tried = [member.tried for member in row.suite]
    assert tried == sorted(tried, reverse=True)
    assert "prefill" not in {member.attack for member in row.suite}
    assert sum(member.broken for member in row.suite) == row.constrained.k
