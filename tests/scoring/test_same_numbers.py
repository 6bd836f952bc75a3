"""A flip's verdicts, objectives, norms and curve are its own, whatever it is attacked beside.

What does depend on the batch, and how much, stands in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery.schema import Record
from saebench_recovery.scoring.attack_and_score import score_chunk
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.valid_flips import evaluation_examples, valid_flips
from tests.problems import tiny_setting

FLIPS = 4


@cache
def attacked() -> tuple[Setting, Sequence[Flip]]:
    attack = Orthogonal(Orthogonal.Config(steps=8))
    setting = replace(tiny_setting("residual", limit=24), attack=attack)
    flips = valid_flips(setting, evaluation_examples(setting))[1][:FLIPS]
    assert len(flips) == FLIPS
    return setting, flips


def records(order: Sequence[int], size: int) -> Mapping[str, Record]:
    """The records of the flips in an order, attacked in chunks."""
    setting, flips = attacked()
    some = [flips[i] for i in order]
    chunks = [score_chunk(setting, some[i : i + size]) for i in range(0, FLIPS, size)]
    return {record.id: record for chunk in chunks for record in chunk.records}


@cache
def together() -> Mapping[str, Record]:
    return records(range(FLIPS), FLIPS)


@pytest.mark.parametrize(
    ("order", "size", "threads"),
    [
        (range(FLIPS), 1, 1),
        (range(FLIPS)[::-1], 3, 1),
        (range(FLIPS), FLIPS, 2),
    ],
    ids=["alone", "backwards in threes", "two threads"],
)
def test_batch_order_and_threads_change_no_verdict_and_no_number(
    order: Sequence[int], size: int, threads: int, whole: bool
) -> None:
    if threads > 1 and not whole:
        pytest.skip("two threads wait for each other where tests run side by side; see --whole")
    expected = together()
    torch.set_num_threads(threads)
    found = records(order, size)
    torch.set_num_threads(1)
    assert found.keys() == expected.keys()
    for name, record in expected.items():
        other = found[name]
        for measure, value in record.measures.items():
            if isinstance(value, bool):
                assert other.measures[measure] is value, (name, measure)
        for field in ("objective_recovered", "smallest_norm", "smallest_norm_wrong"):
            number = getattr(record, field)
            assert getattr(other, field) == (
                number if number is None else pytest.approx(number, rel=1e-4)
            )
