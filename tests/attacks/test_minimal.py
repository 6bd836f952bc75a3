"""`minimal`: never longer than what the null-space ascent shrinks to, and in the constraint set."""

from __future__ import annotations

from dataclasses import replace

import torch

from saebench_recovery.model.meter import Meter
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.controls import climbed
from tests.attacks.setting import attack, flat, flips_under, headline, replayed, searched


def test_what_it_finds_works_and_is_shorter_than_a_shrunk_ascent() -> None:
    setting, flips = flips_under("clamp", attack("minimal"), limit=32)
    problem, found = searched(setting, flips)
    index = headline(setting, flips)
    ascent = replace(setting, attack=attack("orthogonal", steps=50))
    ladder = climbed(problem, searched(ascent, flips)[1], setting.head)
    shrunk_E = ladder.smallest_norm_E(wrong=False)
    replay = replayed(setting, flips, found)
    assert torch.equal(replay.recovered_E, torch.isfinite(shrunk_E))
    assert replay.recovered_E.any()
    norm_N = problem.norm(found)
    assert norm_N is not None
    norm_E = norm_N[index]
    assert (norm_E <= 1.01 * shrunk_E).all()
    assert (norm_E < 0.99 * shrunk_E).any()
    assert replay.tightest_E.amax() < 1e-3


def test_it_is_deterministic_and_does_not_depend_on_the_batch() -> None:
    setting, flips = flips_under("reconstruction", attack("minimal"))
    _, together = searched(setting, flips)
    _, again = searched(setting, flips)
    assert torch.equal(flat(together), flat(again))
    alone = torch.cat([flat(searched(setting, [flip])[1]) for flip in flips])
    lengths = torch.stack([flat(together).norm(dim=1), alone.norm(dim=1)])
    torch.testing.assert_close(lengths[0], lengths[1], rtol=0.02, atol=1e-6)


def test_without_bisections_it_is_longer() -> None:
    setting, flips = flips_under("clamp", attack("minimal", steps=2, bisections=0))
    _, coarse = searched(setting, flips)
    _, fine = searched(replace(setting, attack=attack("minimal", steps=2)), flips)
    shown_N = posed(setting, flips, Meter()).behaviour(fine)
    assert shown_N.any()
    assert (flat(fine).norm(dim=1) <= flat(coarse).norm(dim=1) * (1 + 1e-5))[shown_N].all()
    assert flat(fine).norm(dim=1)[shown_N].sum() < flat(coarse).norm(dim=1)[shown_N].sum()
