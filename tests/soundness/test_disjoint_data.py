"""Rule 6: what chooses latents or teaches an attack is not what is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import (
    Example,
    Split,
)
from saebench_recovery.targets.target import Target
from tests.soundness.setting import (
    DEFENSES,
    Zero,
    clamp,
    defense,
    orthogonal,
    run,
    standard,
)
from tests.tiny import TinyTask, shared_target


class Overlapping(TinyTask):
    """One selection prompt is also an evaluation prompt."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        found = super().examples(target, split)
        if split != "evaluation":
            return found
        return [replace(super().examples(target, "selection")[0], id="again"), *found]


def test_overlap_of_selection_and_evaluation_is_refused() -> None:
    with pytest.raises(UserError, match="selection and evaluation share a prompt"):
        run(clamp(), Zero(), task=Overlapping())


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_is_fitted_without_evaluation_data(name: str) -> None:
    asked: list[Split] = []

    class Watched(TinyTask):
        def examples(self, target: Target, split: Split) -> Sequence[Example]:
            asked.append(split)
            return super().examples(target, split)

    defense(name).fit(shared_target("gpt2"), Watched())
    assert "selection" in asked
    assert "evaluation" not in asked


def test_what_an_attack_learns_from_is_not_scored() -> None:
    whole = standard("nothing")
    scored = run(clamp(), orthogonal(shared=True), limit=None)
    assert scored.row.examples.valid == whole.row.examples.valid
    assert scored.row.examples.learned + len(scored.records) == scored.row.examples.valid
    assert 0 < scored.row.examples.learned < scored.row.examples.valid
    kept = {line.cluster for line in scored.records}
    ids = {line.id for line in scored.records}
    assert kept.isdisjoint(line.cluster for line in whole.records if line.id not in ids)
