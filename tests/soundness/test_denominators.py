"""Rule 8: denominators are shown, an empty one is null, and every number is finite or null.

The formulas of intervals are tested in `scoring/test_statistics.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from saebench_recovery.defenses.clamp import Clamp

from saebench_recovery.schema import Rate, Row
from tests.soundness.setting import (
    DEFENSES,
    FEW_LATENTS,
    Idle,
    Zero,
    clamp,
    defense,
    orthogonal,
    run,
    standard,
    unconstrained,
)


def test_without_valid_flips_rates_are_null_and_flagged() -> None:
    scored = run(Idle(Clamp.Config(**FEW_LATENTS)), orthogonal())
    row = scored.row
    assert row.examples.valid == 0
    assert row.examples.base > 0
    assert "no-valid-flips" in row.flag_names
    rates = [measure for measure in row.measures.values() if isinstance(measure, Rate)]
    for rate in (*rates, *(p.recovery for p in row.curve.points)):
        assert (rate.n, rate.rate, rate.low, rate.high) == (0, None, None, None)
    assert row.fidelity.mean is row.norm.mean is row.curve.median_norm_recovers is None
    assert scored.records == []
    assert scored.journal.chunks == {}
    assert Row.model_validate_json(row.model_dump_json()) == row


def test_few_valid_flips_are_flagged() -> None:
    few, enough = run(clamp(), Zero(), limit=8).row, standard("nothing").row
    assert few.examples.valid < 20 <= enough.examples.valid
    assert "few-valid-flips" in few.flag_names
    assert "few-valid-flips" not in enough.flag_names


@pytest.mark.parametrize("name", DEFENSES)
def test_every_number_is_finite_or_null(name: str) -> None:
    scored = run(defense(name), unconstrained())
    for written in (scored.row, scored.facts, *scored.records):
        text = written.model_dump_json()
        assert not {"NaN", "Infinity", "-Infinity"} & set(text.replace(",", ":").split(":"))
        assert type(written).model_validate_json(text) == written
        assert all(math.isfinite(number) for number in numbers(written.model_dump()))


def numbers(value: object) -> list[float]:
    if isinstance(value, Mapping):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list | tuple):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, float) else []
