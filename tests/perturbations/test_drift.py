"""Drift per scope: formulas, what is undefined, and what the limits forgive."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.perturbations.drift import (
    METRICS,
    SILENT,
    Origin,
    Reading,
    ScopeDrift,
    drift,
    within_limits,
)
from saebench_recovery.sae.files import from_state
from saebench_recovery.sae.latents import Latents
from saebench_recovery.spec import Limits

FIRST, SECOND = Site.parse("blocks.1.hook_resid_post"), Site.parse("blocks.2.hook_resid_post")
D, S = 5, 2


def latents_at(site: Site, decoder_SD: Tensor | None = None) -> Latents:
    state = {
        "W_enc": torch.eye(D)[:, :S],
        "W_dec": torch.eye(D)[:S] if decoder_SD is None else decoder_SD,
        "b_enc": torch.zeros(S),
        "b_dec": torch.zeros(D),
    }
    return from_state({}, state, site).defended(torch.arange(S))


def reading(p_QS: list[list[float]] | Tensor, site: Site = FIRST) -> Reading:
    """One row; activations are the relu of the pre-activations."""
    p_RQS = torch.as_tensor(p_QS)[None]
    return Reading({site: p_RQS.relu()}, {site: p_RQS})


def measure(
    reference: Reading,
    recovered: Reading,
    scope: list[bool] | None = None,
    decoder_SD: Tensor | None = None,
    typical: float = 1.0,
) -> ScopeDrift:
    q = next(iter(reference.z_RQS.values())).shape[1]
    scopes = {"scope": torch.tensor([scope or [True] * q])}
    latents = {FIRST: latents_at(FIRST, decoder_SD)}
    return drift(reference, recovered, latents, scopes, {FIRST: typical})["scope"]


def figures(result: ScopeDrift) -> dict[str, float]:
    assert set(result.metrics) == set(METRICS)
    return {name: values.item() for name, values in result.metrics.items()}


def test_formulas() -> None:
    # Position 0: latent 0 falls from 3 to 2; latent 1 stays off but its pre-activation moves.
    # Position 1: latent 0 rises from 4 to 6; latent 1 is switched on.
    result = figures(
        measure(reading([[3.0, -1.0], [4.0, -1.0]]), reading([[2.0, -0.25], [6.0, 2.0]]))
    )
    assert result["l2"] == pytest.approx(3.0)  # sqrt(1 + 4 + 4)
    assert result["relative_l2"] == pytest.approx(3 / 5)
    assert result["linf"] == pytest.approx(2.0)
    assert result["decode_l2"] == pytest.approx(3.0)  # orthonormal decoder rows
    assert result["decode_relative"] == pytest.approx(3 / 5)
    assert result["floor_violation"] == pytest.approx(1 / 5)
    assert result["reactivated_fraction"] == pytest.approx(1 / 2)
    assert result["preactivation_linf"] == pytest.approx(3.0)
    # sqrt(1 + 0.75^2 + 4 + 9) over four readings that are typically 1
    assert result["preactivation_relative"] == pytest.approx(math.sqrt(14.5625 / 4))


def test_decode_drift_sees_latents_that_cancel() -> None:
    opposed = torch.tensor([[1.0, 0, 0, 0, 0], [-1.0, 0, 0, 0, 0]])
    before, after = reading([[1.0, 2.0]]), reading([[2.0, 3.0]])
    result = figures(measure(before, after, decoder_SD=opposed))
    assert result["l2"] == pytest.approx(math.sqrt(2))
    assert result["decode_l2"] == pytest.approx(0.0)


def test_movement_below_the_threshold_is_seen_in_the_preactivation_only() -> None:
    result = figures(measure(reading([[1.0, -5.0]]), reading([[1.0, -0.5]])))
    assert result["l2"] == 0
    assert result["preactivation_linf"] == pytest.approx(4.5)
    assert result["preactivation_relative"] == pytest.approx(4.5 / math.sqrt(2))


def test_sites_are_pooled_in_quadrature() -> None:
    sites = (FIRST, SECOND)
    ones = torch.ones(1, 1, S)
    before = Reading(dict.fromkeys(sites, ones), dict.fromkeys(sites, ones))
    after = Reading({FIRST: ones + 3, SECOND: ones + 4}, {FIRST: ones + 3, SECOND: ones - 9})
    latents = {s: latents_at(s) for s in sites}
    typical = {FIRST: 1.0, SECOND: 2.0}
    scope = {"a": torch.tensor([[True]])}
    result = figures(drift(before, after, latents, scope, typical)["a"])
    assert result["l2"] == pytest.approx(math.sqrt(2 * (9 + 16)))
    assert result["relative_l2"] == pytest.approx(math.sqrt(50 / 4))
    assert result["linf"] == pytest.approx(4.0)
    assert result["decode_l2"] == pytest.approx(math.sqrt(50))
    assert result["preactivation_linf"] == pytest.approx(9.0)
    assert result["preactivation_relative"] == pytest.approx(math.sqrt((9 + (9 / 2) ** 2) / 2))


def test_only_the_scope_counts_whatever_stands_elsewhere() -> None:
    before = reading([[1.0, 1.0], [1.0, 1.0], [math.nan, math.inf]])
    after = reading([[1.0, 1.0], [2.0, 1.0], [math.nan, 0.0]])
    assert figures(measure(before, after, scope=[True, False, False]))["linf"] == 0
    assert figures(measure(before, after, scope=[True, True, False]))["linf"] == pytest.approx(1)


def test_undefined_figures_are_nan_not_huge() -> None:
    off = figures(measure(reading([[-1.0, -1.0]]), reading([[2.0, -1.0]])))
    assert math.isnan(off["relative_l2"])
    assert math.isnan(off["decode_relative"])
    assert math.isnan(off["floor_violation"])
    assert off["l2"] == pytest.approx(2.0)
    assert off["reactivated_fraction"] == pytest.approx(1 / 2)
    on = figures(measure(reading([[1.0, 1.0]]), reading([[1.0, 1.0]])))
    assert math.isnan(on["reactivated_fraction"])
    assert on["relative_l2"] == 0


def test_a_scope_without_positions_is_nan_and_does_not_constrain() -> None:
    result = measure(reading([[1.0, 1.0]]), reading([[9.0, 1.0]]), scope=[False])
    assert all(math.isnan(value) for value in figures(result).values())
    assert within_limits({"later": result}, Limits()).tolist() == [True]


class TestLimits:
    def judge(self, before: Reading, after: Reading, typical: float = 1.0) -> bool:
        return bool(within_limits({"a": measure(before, after, typical=typical)}, Limits()).item())

    def test_relative_to_the_defended_reading(self) -> None:
        assert self.judge(reading([[1.0, 0.0]]), reading([[1.049, 0.0]]))
        assert not self.judge(reading([[1.0, 0.0]]), reading([[1.051, 0.0]]))

    def test_where_latents_are_silent_their_preactivations_are_judged(self) -> None:
        off = reading([[-1.0, -1.0]])
        assert self.judge(off, off)
        # Both latents move alike, so that the displacement is what each of them moves.
        assert self.judge(off, reading([[-1.049, -0.951]]))
        assert not self.judge(off, reading([[-1.051, -0.949]]))
        assert self.judge(off, reading([[-1.4, -0.6]]), typical=10.0)
        assert not self.judge(off, reading([[-1.6, -0.4]]), typical=10.0)

    def test_a_trace_of_activation_is_silence(self) -> None:
        for share, silent in ((0.9, True), (1.1, False)):
            before = reading([[share * SILENT, share * SILENT]])
            after = reading([[2 * share * SILENT, 2 * share * SILENT]])
            assert self.judge(before, after) == silent

    def test_decode_drift_has_its_own_limit(self) -> None:
        # The drift along the large decoder row is small in z and large in the residual.
        decoder = torch.tensor([[1.0, 0, 0, 0, 0], [0, 100.0, 0, 0, 0]])
        before, after = reading([[10.0, 0.0]]), reading([[10.0, 0.1]])
        result = {"a": measure(before, after, decoder_SD=decoder)}
        assert not within_limits(result, Limits()).item()
        assert within_limits(result, Limits(decode=2.0)).item()

    def test_every_scope_must_hold_and_nan_never_does(self) -> None:
        still = measure(reading([[1.0, 1.0]]), reading([[1.0, 1.0]]))
        moved = measure(reading([[1.0, 1.0]]), reading([[2.0, 1.0]]))
        broken = measure(reading([[1.0, 1.0]]), reading([[math.nan, 1.0]]))
        assert within_limits({"a": still, "b": still}, Limits()).item()
        assert not within_limits({"a": still, "b": moved}, Limits()).item()
        assert not within_limits({"a": still, "b": broken}, Limits()).item()

    def test_rows_are_judged_alone(self) -> None:
        before = Reading({FIRST: torch.ones(3, 1, S)}, {FIRST: torch.ones(3, 1, S)})
        z = torch.ones(3, 1, S) * torch.tensor([1.0, 1.01, 2.0])[:, None, None]
        scopes = {"a": torch.tensor([[True], [True], [True]])}
        latents = {FIRST: latents_at(FIRST)}
        result = drift(before, Reading({FIRST: z}, {FIRST: z}), latents, scopes, {FIRST: 1.0})
        assert within_limits(result, Limits()).tolist() == [True, True, False]

    def test_some_rows_are_judged_as_among_all(self) -> None:
        """Of rows whose latents are silent, whose are not, and of both together."""
        p = torch.tensor([[[-1.0, -2.0]], [[1.0, 3.0]], [[-3.0, -1.0]], [[2.0, -1.0]]])
        moved = p + torch.tensor([0.5, -0.25])
        before, after = Reading({FIRST: p.relu()}, {FIRST: p}), {FIRST: moved.relu()}
        scopes, latents = {"a": torch.ones(4, 1, dtype=torch.bool)}, {FIRST: latents_at(FIRST)}
        origin = Origin.of(before, latents, scopes, {FIRST: 2.0})
        whole = origin.drift(Reading(after, {FIRST: moved}))["a"]
        for chosen in ([0, 2], [1, 3], [2, 3]):
            index = torch.tensor(chosen)
            some = Reading({FIRST: moved[index].relu()}, {FIRST: moved[index]})
            part = origin.rows(index).drift(some)["a"]
            assert torch.equal(part.judged_R, whole.judged_R[index])
            assert torch.equal(part.decode_judged_R, whole.decode_judged_R[index])

    def test_what_no_row_is_judged_by_is_not_computed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        p, scopes = -torch.ones(2, 1, S), {"a": torch.ones(2, 1, dtype=torch.bool)}
        silent = Reading({FIRST: p.relu()}, {FIRST: p})
        origin = Origin.of(silent, {FIRST: latents_at(FIRST)}, scopes, {FIRST: 1.0})
        monkeypatch.delattr(Latents, "decoded")
        judged = origin.drift(Reading({FIRST: p.relu()}, {FIRST: p - 2}))["a"]
        assert judged.judged_R.tolist() == judged.decode_judged_R.tolist() == [2.0, 2.0]
