"""What is said about an SAE, against computing it by hand on plain passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.targets.loading import load_target
from saebench_recovery.training.quality import quality, reconstruction, spliced_in
from tests.plain import plain_logits, plain_model
from tests.tiny import BOS, SITES, shared_target, tiny_dictionary

SITE = Site.parse(SITES[0])
ROWS = [(BOS, 5, 6, 0, 7), (BOS, 8, 9), (BOS, 11, 12, 13, 14, 15, 16, 17, 18, 19)]


def drawn(rows: int) -> Tensor:
    return torch.randn(rows, 32, generator=torch.Generator().manual_seed(5)) * 2 + 0.5


def test_reconstruction_by_hand() -> None:
    dictionary, resid_ND = tiny_dictionary(SITE), drawn(300)
    found = reconstruction(dictionary, [resid_ND[:77], resid_ND[77:]])
    z_NM = dictionary.encode(resid_ND)
    error = (resid_ND - dictionary.decode(z_NM, resid_ND)).square().sum()
    total = (resid_ND - resid_ND.mean(0)).square().sum()
    assert found.tokens == 300
    assert found.explained_variance == pytest.approx(float(1 - error / total), abs=1e-5)
    assert found.explained_variance_without_massive == found.explained_variance
    assert (found.massive_dimensions, found.massive_share) == ((), 0)
    assert found.l0 == pytest.approx(float((z_NM > 0).sum(1).float().mean()))
    few = reconstruction(dictionary, [resid_ND[:2]])
    assert few.dead == pytest.approx(float((z_NM[:2] > 0).any(0).logical_not().float().mean()))
    assert 0 < few.dead < 1


def test_massive_dimensions_are_named_and_left_out() -> None:
    dictionary, resid_ND = tiny_dictionary(SITE), drawn(300)
    scale_D = torch.ones(32).index_fill(0, torch.tensor([3, 20]), 40.0)
    resid_ND = resid_ND * scale_D
    found = reconstruction(dictionary, [resid_ND])
    assert found.massive_dimensions == (3, 20)
    variance_D = (resid_ND - resid_ND.mean(0)).square().sum(0)
    error_D = (resid_ND - dictionary.decode(dictionary.encode(resid_ND), resid_ND)).square().sum(0)
    rest = scale_D == 1
    share = float(variance_D[~rest].sum() / variance_D.sum())
    without = float(1 - error_D[rest].sum() / variance_D[rest].sum())
    assert found.massive_share == pytest.approx(share, rel=1e-4)
    assert found.explained_variance_without_massive == pytest.approx(without, rel=1e-4)
    assert found.explained_variance != pytest.approx(without, rel=0.1)


def test_a_constant_residual_has_no_explained_variance() -> None:
    found = reconstruction(tiny_dictionary(SITE), [drawn(1)])
    assert found.explained_variance is None
    assert found.massive_share is None


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "gemma2", "gemma3"])
def test_cross_entropy_by_hand(architecture: str) -> None:
    target = shared_target(architecture)
    dictionary = target.dictionary(SITE)
    found = spliced_in(target, dictionary, ROWS)
    plain = plain_model(target.model)
    nats = {"clean": 0.0, "spliced": 0.0, "ablated": 0.0}
    tokens = 0
    for row in ROWS:
        ids = torch.tensor(row)
        content = ids > 2

        def spliced(resid: Tensor, content: Tensor = content) -> Tensor:
            made = dictionary.decode(dictionary.encode(resid), resid)
            return torch.where(content[:, None], made, resid)

        def ablated(resid: Tensor, content: Tensor = content) -> Tensor:
            return torch.where(content[:, None], torch.zeros(()), resid)

        edits = {"clean": {}, "spliced": {SITE: spliced}, "ablated": {SITE: ablated}}
        for name, edit in edits.items():
            with torch.no_grad():
                logits_TV = plain_logits(plain, row, edit)
            wanted = content[1:]
            nats[name] += float(
                cross_entropy(logits_TV[:-1][wanted], ids[1:][wanted], reduction="sum")
            )
        tokens += int(content[1:].sum())
    assert found.tokens == tokens
    for name, value in nats.items():
        assert getattr(found, name) == pytest.approx(value / tokens, rel=1e-4)
    gap = nats["ablated"] - nats["clean"]
    if gap > 0:
        recovered = (nats["ablated"] - nats["spliced"]) / gap
        assert found.recovered == pytest.approx(recovered, rel=1e-3)
    else:
        assert found.recovered is None


def test_the_organisms_own_sae_is_good_on_its_neutral_text() -> None:
    target = load_target("organism", "cpu")
    found = quality(target, Site.parse("blocks.2.hook_resid_post"), target.neutral_texts)
    read, ce = found.reconstruction, found.cross_entropy
    assert read.explained_variance is not None
    assert ce.recovered is not None
    assert 0.85 < read.explained_variance < 1
    assert ce.clean < ce.spliced < ce.ablated
    assert 0.85 < ce.recovered < 1
    assert read.l0 < 0.05 * found.width


def test_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="too short to measure on"):
        quality(shared_target("gpt2"), SITE, ["a"])
