"""The constraint sets: exact, idempotent, never longer; and why the delta itself is projected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.perturbations.constraints import (
    Constraint,
    Free,
    NullSpace,
    Sphere,
    constraint_for,
    orthonormal_basis,
)
from saebench_recovery.sae.activations import TopK
from saebench_recovery.sae.files import from_state
from saebench_recovery.sae.latents import Dictionary, Latents

SITE = Site.parse("blocks.1.hook_resid_post")
Change = Callable[[Tensor], Tensor]
R, P = 3, 2
NORMALISING = ("layer_norm", "constant_norm_rescale")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def columns(d: int, k: int, rank: int | None = None) -> Tensor:
    """Encoder columns of very different lengths; `rank` of them independent."""
    A_DS = torch.randn(d, k) * torch.logspace(-2, 2, k)
    if rank is not None:  # scaled and sign-flipped copies, exact in float32
        A_DS[:, rank:] = -4 * A_DS[:, torch.arange(k - rank) % rank]
    return A_DS


def displacement(delta_RPD: Tensor, A_DS: Tensor) -> float:
    """Largest |a . delta| / (|a| |delta|), measured in float64."""
    delta, A = delta_RPD.double(), A_DS.double()
    scale = A.norm(dim=0) * delta.norm(dim=-1, keepdim=True)
    return float(((delta @ A).abs() / scale.clamp_min(1e-30)).max())


def latents_of(
    normalisation: str, *, centre: bool = False, d: int = 96, k: int = 16, scale: float = 1.0
) -> Latents:
    """Latents of a random jumprelu SAE, thresholds such that about a third are active."""
    m = 4 * k
    cfg = {
        "architecture": "jumprelu",
        "normalize_activations": normalisation,
        "metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": centre}},
    }
    state = {
        "W_enc": torch.randn(d, m) / d**0.5 * scale,
        "W_dec": torch.randn(m, d) / d**0.5,
        "b_enc": torch.randn(m),
        "b_dec": torch.randn(d),
        "threshold": torch.rand(m),
    }
    return from_state(cfg, state, SITE).defended(torch.randperm(m)[:k])


class TestNullSpace:
    @pytest.mark.parametrize(
        ("d", "k", "rank"), [(192, 32, None), (2304, 64, None), (2304, 500, 300), (64, 80, None)]
    )
    def test_keeps_every_reading_and_is_idempotent(self, d: int, k: int, rank: int | None) -> None:
        A_DS = columns(d, k, rank)
        constraint = NullSpace(A_DS)
        assert constraint.rank == (rank or min(d, k))
        delta = torch.randn(R, P, d) * 50
        kept = constraint.project(delta)
        assert kept.dtype == torch.float32
        if constraint.rank < d:
            assert displacement(kept, A_DS) <= 1e-6
            assert kept.norm() > 0.1 * delta.norm()
        else:  # nothing is left to move
            assert kept.norm() <= 1e-6 * delta.norm()
        assert torch.all(kept.norm(dim=-1) <= delta.norm(dim=-1))
        torch.testing.assert_close(constraint.project(kept), kept, rtol=0, atol=1e-4)

    def test_is_the_nearest_allowed_delta(self) -> None:
        A_DS = columns(64, 8)
        constraint = NullSpace(A_DS)
        delta = torch.randn(1, 1, 64)
        kept = constraint.project(delta)
        for _ in range(20):
            other = kept + constraint.project(0.1 * torch.randn(1, 1, 64))
            assert (delta - kept).norm() <= (delta - other).norm()

    def test_nearly_dependent_columns_are_all_kept(self) -> None:
        """A ridge, or a loose rank, would let the small difference between them move."""
        a, b = torch.randn(192), torch.randn(192)
        constraint = NullSpace(torch.stack([a, a + 1e-4 * b], 1))
        assert constraint.rank == 2
        kept = constraint.project(torch.randn(R, P, 192))
        assert displacement(kept, b[:, None] - a[:, None] * (a @ b) / (a @ a)) <= 1e-3

    def test_zero_columns_forbid_nothing(self) -> None:
        assert NullSpace(torch.zeros(16, 3)).rank == 0
        assert NullSpace(torch.zeros(16, 0)).rank == 0
        delta = torch.randn(R, P, 16)
        assert torch.equal(NullSpace(torch.zeros(16, 3)).project(delta), delta)

    def test_shrinking_stays_inside(self) -> None:
        A_DS = columns(192, 32)
        constraint = NullSpace(A_DS)
        kept = constraint.project(torch.randn(R, P, 192))
        shorter = constraint.shrink(kept, torch.tensor([[1.0], [0.3], [0.0]]))
        assert displacement(shorter[:2], A_DS) <= 1e-6
        torch.testing.assert_close(shorter[1].norm(), 0.3 * kept[1].norm())
        assert not shorter[2].any()


class TestSphere:
    """Readings of real latents, before the defense (base) and after it (base + edit)."""

    CASES = pytest.mark.parametrize(
        ("normalisation", "centre"), [(n, c) for n in NORMALISING for c in (False, True)]
    )

    def scene(
        self, normalisation: str, *, centre: bool
    ) -> tuple[Latents, Tensor, Tensor, Constraint]:
        latents = latents_of(normalisation, centre=centre)
        base = torch.randn(R, P, 96) * 3 + 0.7
        edit = latents.write(base, -2 * latents.read(base) - 0.1) - base
        return latents, base, edit, constraint_for(latents, base, edit)

    @CASES
    def test_readings_are_kept_before_and_after_the_defense(
        self, normalisation: str, centre: bool
    ) -> None:
        latents, base, edit, constraint = self.scene(normalisation, centre=centre)
        assert isinstance(constraint, Sphere)
        assert constraint.kind == "exact"
        delta = constraint.project(torch.randn(R, P, 96) * 3)
        assert delta.norm() > 0.5 * base.norm()  # a large move, out of the linear regime
        for state in (base, base + edit):
            for moved in (delta, constraint.shrink(delta, torch.tensor([[1.0], [0.5], [0.01]]))):
                z, p = latents.read(state), latents.preactivation(state)
                torch.testing.assert_close(latents.read(state + moved), z, rtol=1e-5, atol=3e-6)
                torch.testing.assert_close(
                    latents.preactivation(state + moved), p, rtol=1e-5, atol=3e-6
                )

    @CASES
    def test_the_edit_itself_is_unchanged(self, normalisation: str, centre: bool) -> None:
        latents, base, edit, constraint = self.scene(normalisation, centre=centre)
        x = base + constraint.project(torch.randn(R, P, 96) * 3)
        moved_edit = latents.write(x, -2 * latents.read(x) - 0.1) - x
        torch.testing.assert_close(moved_edit, edit, rtol=1e-4, atol=1e-5)

    @CASES
    def test_the_null_space_alone_would_move_the_readings(
        self, normalisation: str, centre: bool
    ) -> None:
        latents, base, _, _ = self.scene(normalisation, centre=centre)
        delta = NullSpace(latents.columns_DS).project(torch.randn(R, P, 96) * 3)
        assert (latents.preactivation(base + delta) - latents.preactivation(base)).abs().max() > 0.1

    @CASES
    def test_is_idempotent_never_longer_and_shrinks_to_length(
        self, normalisation: str, centre: bool
    ) -> None:
        _, _, _, constraint = self.scene(normalisation, centre=centre)
        for size in (1e-3, 1.0, 1e3):
            delta = torch.randn(R, P, 96) * size
            kept = constraint.project(delta)
            assert torch.all(kept.norm(dim=-1) <= delta.norm(dim=-1) * (1 + 1e-6))
            torch.testing.assert_close(constraint.project(kept), kept, rtol=1e-5, atol=1e-5 * size)
            factor_RP = torch.tensor([[0.9], [0.2], [0.0]])
            shorter = constraint.shrink(kept, factor_RP)
            torch.testing.assert_close(
                shorter.norm(dim=-1), kept.norm(dim=-1) * factor_RP, rtol=1e-5, atol=1e-7
            )

    def test_inwards_never_longer_and_still_on_the_sphere(self) -> None:
        """Towards the centre the nearest point of the sphere can be further than asked for."""
        base = torch.randn(1, 1, 32)
        constraint = Sphere(columns(32, 4), base, torch.zeros_like(base), centred=False)
        for t in (-0.9, -1.0, -1.1, -3.0, 0.5):
            delta = t * base + 0.01 * torch.randn(1, 1, 32)
            kept = constraint.project(delta)
            assert kept.norm() <= delta.norm() * (1 + 1e-6)
            torch.testing.assert_close((base + kept).norm(), base.norm())

    @pytest.mark.parametrize("exact", [True, False])
    def test_the_far_side_and_rows_without_a_radius(self, exact: bool) -> None:
        """No great circle to the antipode is shorter, and the tangent is rounding there."""
        A_DS = columns(32, 4)
        base = torch.randn(1, 2, 32) * 8
        base = base.round() if exact else base  # multiples of it: exact, or off by a rounding
        base[0, 1] = A_DS[:, 0]  # seen whole by a latent: nothing of it is free
        constraint = Sphere(A_DS, base, torch.zeros_like(base), centred=False)
        for t in (1.5, 2.0, 3.0):
            away = constraint.project(-t * base)
            for kept in (away, constraint.shrink(away, torch.tensor([[0.5]]))):
                assert displacement(kept[:, :1], A_DS) <= 1e-6
                assert kept.isfinite().all()
                assert kept[0, 1].norm() <= 1e-5 * base[0, 1].norm()
        assert not constraint.project(torch.zeros_like(base)).any()

    def test_rows_are_chosen_with_their_own_sphere(self) -> None:
        _, _, _, constraint = self.scene("layer_norm", centre=False)
        delta = torch.randn(R, P, 96)
        index = torch.tensor([2, 0, 0])
        chosen = constraint.rows(index).project(delta[index])
        torch.testing.assert_close(chosen, constraint.project(delta)[index])

    def test_rank_counts_columns_centring_edit_and_radius(self) -> None:
        base, A_DS = torch.randn(R, P, 32), columns(32, 4)
        A_DS = A_DS - A_DS.mean(0)
        none, edit = torch.zeros(R, P, 32), torch.randn(R, P, 32)
        assert Sphere(A_DS, base, none, centred=False).rank == 4 + 1
        assert Sphere(A_DS, base, edit, centred=False).rank == 4 + 2
        assert Sphere(A_DS, base, edit, centred=True).rank == 4 + 3

    def test_an_edit_that_the_latents_see_whole_forbids_nothing_more(self) -> None:
        base, A_DS = torch.randn(R, P, 32), columns(32, 4)
        constraint = Sphere(A_DS, base, (2 * A_DS[:, 0]).expand(R, P, 32), centred=False)
        assert constraint.rank == 4 + 1
        assert displacement(constraint.project(torch.randn(R, P, 32)), A_DS) <= 1e-6


def test_constraint_follows_the_dictionary() -> None:
    base = torch.randn(R, P, 96)
    assert isinstance(constraint_for(latents_of("none"), base, base), NullSpace)
    assert isinstance(constraint_for(latents_of("none", centre=True), base, base), NullSpace)
    plain = latents_of("none")
    fields = {**vars(plain.dictionary), "architecture": "topk", "activation": TopK(4, signed=False)}
    competing = constraint_for(Dictionary(**fields).defended(plain.features), base, base)
    assert competing.kind == "first-order"
    assert "compete" in competing.note


def test_free_changes_nothing() -> None:
    delta = torch.randn(R, P, 8)
    assert Free().rank == 0
    assert Free().kind == "none"
    assert torch.equal(Free().project(delta), delta)
    assert torch.equal(Free().rows(torch.tensor([0])).project(delta), delta)
    torch.testing.assert_close(Free().shrink(delta, torch.full((R, P), 0.5)), delta / 2)


def test_projecting_only_gradients_leaves_drift() -> None:
    """Rule 3: Adam rescales every coordinate, so a projected gradient does not stay projected."""
    d, k = 192, 32
    latents = latents_of("none", d=d, k=k)
    constraint = NullSpace(latents.columns_DS)
    base, goal = torch.randn(R, P, d) * 3, torch.randn(d)

    def run(
        on_gradient: Callable[[Tensor], Tensor], on_delta: Callable[[Tensor], Tensor]
    ) -> Tensor:
        delta = torch.zeros(R, P, d, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=0.1)
        for _ in range(50):
            loss = -torch.tanh((base + delta) @ goal / 50).sum()
            (gradient,) = torch.autograd.grad(loss, delta)
            delta.grad = on_gradient(gradient)
            adam.step()
            delta.data = on_delta(delta.data)
        return delta.detach()

    def drift(delta: Tensor) -> float:
        z0, z = latents.read(base), latents.read(base + delta)
        return float((z - z0).norm() / z0.norm())

    def keep(tensor: Tensor) -> Tensor:
        return tensor

    gradient_only = run(constraint.project, keep)
    delta_itself = run(keep, constraint.project)
    assert displacement(gradient_only, latents.columns_DS) > 1e-2
    assert drift(gradient_only) > 1e-2
    assert displacement(delta_itself, latents.columns_DS) <= 1e-6
    assert drift(delta_itself) <= 1e-5
    # ... and the constrained delta still goes where it should.
    assert torch.all(delta_itself @ goal > 0)


def test_basis_is_orthonormal_in_float64() -> None:
    basis = orthonormal_basis(columns(300, 40, rank=25))
    assert basis.dtype == torch.float64
    torch.testing.assert_close(basis.T @ basis, torch.eye(25, dtype=torch.float64))
