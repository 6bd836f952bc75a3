"""Every tuned defense of the embedded target flips enough, and leaves the rest alone."""

from __future__ import annotations

import pytest

from saebench_recovery.spec import Limits
from tests.tasks.tuned import SUITED, tuned

FLIPS, EXAMPLES = 60, 128


@pytest.mark.parametrize(("name", "defense"), SUITED)
def test_tuned_defenses_stop_the_behaviour_and_little_else(name: str, defense: str) -> None:
    one, limits = tuned(name, defense), Limits()
    effects = one.effects
    assert one.examples >= EXAMPLES
    assert one.flips >= FLIPS
    assert effects.retained is not None
    assert effects.retained >= limits.retained
    assert effects.kl is not None
    assert effects.ce_increase is not None
    assert effects.kl <= limits.kl
    assert effects.ce_increase <= limits.ce
