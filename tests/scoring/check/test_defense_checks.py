"""Function, gradient and edits of a defense, on a tiny target where the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.scoring.check.catalogue import finding, refuse
from saebench_recovery.scoring.check.defense_edits import Edits
from saebench_recovery.scoring.check.defense_function import FunctionCheck
from saebench_recovery.scoring.check.defense_gradient import GradientCheck
from tests.tiny import SITES, TinyTask, shared_target

SITE = Site.parse(SITES[0])
RESIDUALS = 3 * torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0))


class Spoiled(Clamp):
    """The clamp, with something done to what it returns."""

    def __init__(self, spoil: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(Clamp.Config(latents=8))
        self.spoil = spoil
        self.fit(shared_target("gpt2"), TinyTask())

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.spoil(super().intervene(site, resid_BTD), resid_BTD)


def honest() -> Spoiled:
    return Spoiled(lambda clamped, resid: clamped)


def checked(defense: Clamp) -> FunctionCheck:
    return FunctionCheck(defense, SITE, list(RESIDUALS))


def gradient(defense: Clamp) -> list[str]:
    pull = torch.randn(RESIDUALS.shape, generator=torch.Generator().manual_seed(1))
    return [found.name for found in GradientCheck(defense, SITE, RESIDUALS, pull).findings()]


def test_an_honest_defense_has_no_findings() -> None:
    check = checked(honest())
    assert check.findings() == []
    assert check.afterwards() == []
    assert gradient(honest()) == []


def test_a_defense_that_gives_way_later_is_found_afterwards() -> None:
    calls: list[int] = []

    def tired(clamped: Tensor, resid: Tensor) -> Tensor:
        calls.append(1)
        return clamped if len(calls) < 1000 else resid

    check = checked(Spoiled(tired))
    assert check.findings() == []
    calls += [1] * 1000
    assert [found.name for found in check.afterwards()] == ["stateful-defense"]


@pytest.mark.parametrize(("least", "most"), [(20, 2000), (7, 31), (500, 600)])
def test_a_defense_that_gives_way_in_batches_of_some_sizes_is_found(least: int, most: int) -> None:
    def counting(clamped: Tensor, resid: Tensor) -> Tensor:
        rows, tokens = resid.shape[:2]
        return resid if tokens == 1 and least <= rows <= most else clamped

    names = [found.name for found in checked(Spoiled(counting)).findings()]
    assert names == ["depends-on-batch"]


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda clamped, resid: 2 * clamped.detach() - clamped, "gradient-dishonest"),
        (lambda clamped, resid: clamped.detach() - resid.detach() + resid, "gradient-dishonest"),
        (lambda clamped, resid: clamped.detach() + 0 * resid, "no-gradient"),
        (lambda clamped, resid: clamped.detach(), "no-gradient"),
        (lambda clamped, resid: torch.round(clamped * 5) / 5, "no-gradient"),
    ],
    ids=["negative", "of-nothing", "zero", "none", "rounded"],
)
def test_a_false_gradient_is_found(spoil: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
    assert gradient(Spoiled(spoil)) == [name]


def test_a_gradient_that_is_false_on_one_prompt_is_found() -> None:
    marked = RESIDUALS[2, 0, 0]

    def sometimes(clamped: Tensor, resid: Tensor) -> Tensor:
        lie = (resid[:, :1, :1] - marked).abs() < 0.5
        return torch.where(lie, 2 * clamped.detach() - clamped, clamped)

    assert gradient(Spoiled(sometimes)) == ["gradient-dishonest"]


def test_only_edited_latents_are_held() -> None:
    defense, dictionary = honest(), shared_target("gpt2").dictionary(SITE)
    before = RESIDUALS.flatten(0, 1)
    after = defense.intervene(SITE, before[None])[0]
    own = defense.latents[SITE]
    active = (own.read(before) > 0).any(0)
    assert torch.equal(Edits(SITE, own, before, after).edited_S, active)
    everything = dictionary.defended(torch.arange(dictionary.width))
    held = Edits(SITE, everything, before, after).edited_S.nonzero()[:, 0]
    assert held.tolist() == sorted(own.features[active].tolist())


def test_an_error_is_refused_with_its_remedy() -> None:
    refuse([finding("no-gradient", "a sentence")])
    with pytest.raises(UserError, match=r"a sentence \(returns-none\); return a residual"):
        refuse([finding("returns-none", "a sentence")])
