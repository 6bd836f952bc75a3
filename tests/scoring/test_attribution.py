"""Attribution names the carrier that was planted, and nothing where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.perturbations.parts import PARTS, WHOLE, Split, scaled, split
from saebench_recovery.sae.activations import Threshold
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.schema import DeltaEffect, Source
from saebench_recovery.scoring.attribution import Works, contrasts, effect, replayed, shapley
from tests.tiny import tiny_dictionary

SITE = Site.parse("blocks.0.hook_resid_post")
FLIPS, WIDTH, LATENTS = 24, 16, 6
CLUSTERS = [f"item {e // 2}" for e in range(FLIPS)]
CLAMPED, OTHER, OUTSIDE = 0, 3, 10  # dimensions: two of the SAE's latents, and one that it lacks


def dictionary() -> Dictionary:
    """Latents are the first dimensions."""
    rows = torch.eye(LATENTS, WIDTH)
    one, zero = torch.ones(LATENTS), torch.zeros(LATENTS)
    return replace(
        tiny_dictionary(SITE, WIDTH, latents=LATENTS),
        encoder_DM=rows.T.contiguous(),
        decoder_MD=rows,
        bias_M=zero,
        activation=Threshold(one * 0.1, one, zero),
        decoder_bias_D=torch.zeros(WIDTH),
    )


def parts_of(value_ED: Tensor) -> Split:
    """A delta at one position, on residuals at which every latent is on."""
    delta = ResidualDelta({SITE: value_ED[:, None]}, torch.zeros(FLIPS, 1, dtype=torch.long))
    drawn = [torch.Generator().manual_seed(e) for e in range(FLIPS)]
    base = {SITE: torch.full((FLIPS, 1, WIDTH), 2.0)}
    clamped = {SITE: torch.tensor([CLAMPED, 1])}
    return split(delta, base, {SITE: dictionary()}, clamped, 2, drawn)


def planted() -> Tensor:
    """Steps along another latent and outside of the SAE, and a little of everything."""
    value_ED = 0.05 * torch.randn(FLIPS, WIDTH, generator=torch.Generator().manual_seed(1))
    value_ED[:, OTHER] += 0.8
    value_ED[:, OUTSIDE] += 0.8
    return value_ED


def reaching(*dimensions: int) -> Works:
    """A behaviour that comes back where the delta goes far enough along all of these."""
    return lambda delta: (delta.values[SITE][:, 0, list(dimensions)] > 0.5).all(1)


def found(source: Source, value_ED: Tensor, works: Works) -> DeltaEffect:
    parts = parts_of(value_ED)
    verdicts = replayed(works, parts, 0.7 * parts.delta.norm_E())
    whole_E = parts.delta.norm_E()
    lengths = {p: (parts.parts[p].norm_E() / whole_E).tolist() for p in PARTS}
    return effect(source, verdicts, lengths, CLUSTERS)


def test_the_parts_add_up_and_random_directions_stay_in_their_subspaces() -> None:
    parts = parts_of(planted())
    total = sum(parts.parts[p].values[SITE] for p in WHOLE)
    torch.testing.assert_close(total, parts.delta.values[SITE])
    inside = {"clamped": slice(0, 2), "other": slice(2, LATENTS), "residual": slice(LATENTS, None)}
    for part, dimensions in inside.items():
        for delta in (parts.parts[part], parts.random[part]):
            outside = delta.values[SITE].clone()
            outside[..., dimensions] = 0
            assert outside.abs().max() < 1e-6
        torch.testing.assert_close(parts.random[part].norm_E(), parts.parts[part].norm_E())
    longer = scaled(parts.parts["other"], torch.full((FLIPS,), 3.0))
    torch.testing.assert_close(longer.norm_E(), torch.full((FLIPS,), 3.0))


@pytest.mark.parametrize(
    ("carrier", "dimensions"),
    [
        (("residual",), (OUTSIDE,)),
        (("other",), (OTHER,)),
        (("other", "residual"), (OTHER, OUTSIDE)),
    ],
)
def test_it_names_the_planted_carrier(carrier: tuple[str, ...], dimensions: tuple[int]) -> None:
    effect = found("recovering", planted(), reaching(*dimensions))
    assert effect.works.k == FLIPS
    assert effect.carriers == carrier
    share = {part.part: part.share for part in effect.parts if part.share is not None}
    for part in carrier:
        carried = share[part]  # type: ignore[index]
        assert carried.mean == pytest.approx(1 / len(carrier))
        for other in set(WHOLE) - set(carrier):
            left = share[other]  # type: ignore[index]
            assert left.high is not None
            assert carried.low is not None
            assert left.high < carried.low
    by_part = {part.part: part for part in effect.parts}
    if len(carrier) == 1:
        own = by_part[carrier[0]]  # type: ignore[index]
        assert (own.at_full_norm.low or 0) > (own.random_at_full_norm.high or 0)


@pytest.mark.parametrize("source", ["random", "wrong-target"])
def test_where_nothing_carries_it_says_so(source: Source) -> None:
    drawn = torch.randn(FLIPS, WIDTH, generator=torch.Generator().manual_seed(2))
    random = planted().norm(dim=1, keepdim=True) * torch.nn.functional.normalize(drawn, dim=1)
    effect = found(source, random, reaching(OTHER, OUTSIDE))
    assert effect.carriers == ()
    assert "no part is told apart from nothing" in effect.verdict


def test_a_wrong_answer_that_is_carried_alike_is_not_told_apart() -> None:
    parts = parts_of(planted())
    norm_E = parts.delta.norm_E()
    right = replayed(reaching(OUTSIDE), parts, norm_E)
    wrong = replayed(reaching(OTHER), parts, norm_E)
    same = {c.second: c for c in contrasts(right, right, CLUSTERS)}
    other = {c.second: c for c in contrasts(right, wrong, CLUSTERS)}
    name = "share of the SAE residual, recovery"
    assert not same[name].told_apart
    assert other[name].told_apart
    assert other[name].difference == pytest.approx(1)


def test_shares_add_up_to_what_works() -> None:
    parts = parts_of(planted())
    drawn = torch.Generator().manual_seed(3)
    verdicts = replayed(
        lambda delta: torch.rand(FLIPS, generator=drawn) > 0.5, parts, parts.delta.norm_E()
    )
    each = shapley(verdicts)
    for e, works in enumerate(verdicts["full"]):
        assert sum(each[part][e] for part in WHOLE) == pytest.approx(float(bool(works)))


def test_a_part_that_is_not_there_is_left_out() -> None:
    value_ED = planted()
    value_ED[:, :2] = 0
    effect = found("recovering", value_ED, reaching(OUTSIDE))
    clamped = effect.parts[0]
    assert clamped.part == "clamped"
    assert clamped.alone.n == clamped.at_full_norm.n == 0
    assert clamped.share is not None
    assert clamped.share.mean == 0
