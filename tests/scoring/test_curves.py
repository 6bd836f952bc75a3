"""Recovery against compute and against the drift limit, both read off one run."""

from __future__ import annotations

import pytest
import torch

from saebench_recovery.interfaces import Attack
from saebench_recovery.perturbations.drift import ScopeDrift, tightest_limit, within_limits
from saebench_recovery.schema import Rate
from saebench_recovery.scoring import statistics
from saebench_recovery.spec import Limits
from tests.soundness.setting import clamp, orthogonal, run, unconstrained


@pytest.mark.parametrize("attack", [orthogonal(), unconstrained()], ids=lambda a: str(a.name))
def test_curves_end_where_the_row_stands(attack: Attack) -> None:
    row = run(clamp(), attack, limit=None).row
    compute = [point.recovery.k for point in row.curve.compute]
    assert compute == sorted(compute)
    assert compute[-1] == row.recovery.k > compute[0]  # and some needed more than the first looks
    by_limit = {point.limit: point.recovery for point in row.curve.drift}
    assert by_limit[0.05].k == row.constrained.k
    counts = [rate.k for _, rate in sorted(by_limit.items())]
    assert counts == sorted(counts)
    assert counts[-1] <= row.recovery.k


def test_unconstrained_recovery_needs_a_wider_limit() -> None:
    def at(attack: Attack, limit: float) -> Rate:
        curve = run(clamp(), attack, limit=None).row.curve
        return next(point.recovery for point in curve.drift if point.limit == limit)

    assert at(orthogonal(), 1e-3).k > at(unconstrained(), 1e-3).k


def test_the_advantage_is_the_ratio_of_the_norms() -> None:
    assert statistics.advantage(0.25, 0.5) == 2.0
    for missing in ((1e-310, 5.0), (None, 0.5), (0.25, None), (0.0, 0.5)):
        assert statistics.advantage(*missing) is None
    curve = run(clamp(), orthogonal(), limit=None).row.curve
    norms = (curve.median_norm_recovers, curve.median_norm_injects)
    assert norms[0] is not None
    assert curve.recovery_advantage == statistics.advantage(*norms)


def scope(judged: float, decoded: float, *, present: bool = True) -> ScopeDrift:
    return ScopeDrift(
        dict, torch.tensor([present]), torch.tensor([judged]), torch.tensor([decoded])
    )


def test_the_tightest_limit_is_the_worst_of_scopes_and_of_both_drifts() -> None:
    scopes = {"a": scope(0.1, 0.2), "b": scope(0.3, 0.05), "absent": scope(9, 9, present=False)}
    assert float(tightest_limit(scopes)) == pytest.approx(0.3)
    for limit in (0.299, 0.301):
        limits = Limits(drift=limit, decode=limit)
        assert bool(within_limits(scopes, limits)) == (limit > 0.3)


@pytest.mark.parametrize("drift", [torch.nan, torch.inf])
def test_drift_that_is_no_finite_number_is_inside_of_no_limit(drift: float) -> None:
    assert float(tightest_limit({"a": scope(drift, 0.0)})) == torch.inf
    assert float(tightest_limit({"a": scope(0.0, drift)})) == torch.inf
