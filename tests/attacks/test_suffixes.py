"""Suffix attacks: what is scored is the string, and drift is what it is for every other attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from saebench_recovery.attacks.gcg import GreedyCoordinateGradient as Gcg
from saebench_recovery.attacks.soft_suffix import SoftSuffixAscent as Soft
from saebench_recovery.defenses.clamp import Clamp
from scipy.stats import wilcoxon
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Defense, Example, Perturbation, TokenSuffix
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.target import Target
from tests.journal import Scored, score
from tests.tiny import TinyTask, TinyTokenizer, shared_target, tiny_target

LENGTH = 4
QUICK = {"length": LENGTH, "steps": 6, "candidates": 16}
MERGED = 3  # the one token that "!" and "!" become side by side


class Merging(TinyTokenizer):
    """Two "!" side by side are one token."""

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        ids = [
            [MERGED if c == "\0" else self._one(c) for c in t.replace("!!", "\0")] for t in texts
        ]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        one = super().decode
        return "".join(
            "!!" if i == MERGED else one([i], skip_special_tokens=skip_special_tokens) for i in ids
        )

    def _one(self, character: str) -> int:
        found: int = super().__call__(character)["input_ids"][0]
        return found


class Forgetful(TinyTokenizer):
    """Loses every "!"."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return super().decode(ids, skip_special_tokens=skip_special_tokens).replace("!", "")


def speaking(tokenizer: TinyTokenizer) -> Target:
    return replace(tiny_target("gpt2"), tokenizer=tokenizer)


class Printable(TinyTask):
    """Prompts of letters."""

    def examples(self, target: Target, split: Any) -> Sequence[Example]:
        made = super().examples(target, split)
        if split == "retain":
            return made
        letters = range(3 + ord("A"), 3 + ord("Z"))

        def spelt(example: Example) -> Example:
            words = (letters[i % len(letters)] for i in example.prompt[1:])
            return replace(example, prompt=(example.prompt[0], *words))

        return [spelt(example) for example in made]


def run(attack: Attack, *, defense: Defense | None = None, **options: Any) -> Scored:
    target = options.pop("target", None) or shared_target("gpt2")
    task = options.pop("task", None) or TinyTask()
    clamp = defense or Clamp(Clamp.Config(latents=8, multiplier=0.3))
    return score(target, task, clamp, attack, RunSpec(**{"limit": 24, **options}))


def suffixes(found: Scored) -> TokenSuffix:
    headline = found.headline()
    assert isinstance(headline, TokenSuffix)
    return headline


def gcg(**config: Any) -> Gcg:
    return Gcg(Gcg.Config(**{**QUICK, **config}))


class Says(Attack):
    """Returns one text for every example, and claims what it likes of its tokens."""

    space = "tokens"

    def __init__(self, text: str, ids: Sequence[int]) -> None:
        super().__init__()
        self.text, self.ids = text, ids

    @property
    def length(self) -> int:
        return LENGTH

    def search(self, problem: Problem) -> Perturbation:
        self.problem = problem
        ids_NL = torch.tensor([list(self.ids)]).repeat(problem.size, 1)
        return TokenSuffix(
            ids_NL, SuffixTokens.of(problem).layout.at_N, (self.text,) * problem.size
        )


def test_tokens_that_merge_are_scored_as_what_they_merge_to() -> None:
    bang = TinyTokenizer()("!")["input_ids"][0]
    attack = Says("!!ab", [bang, bang, 3 + 97, 3])
    target = speaking(Merging())
    found = run(attack, target=target, task=Printable())
    merged = Merging()("!!ab")["input_ids"]
    assert len(merged) == 3
    suffix = suffixes(found)
    assert suffix.ids_EL.tolist() == [[*merged, -1]] * len(found.records)
    by_id = {example.id: example for example in Printable().examples(target, "evaluation")}
    longer, _ = suffix.applied([by_id[record.id] for record in found.records])
    active = attack.problem._engine.active
    output = whole_pass(active, TinyTask(), active.target.batch(longer))
    for record, objective in zip(found.records, TinyTask().objective(output), strict=True):
        assert record.objective_recovered == pytest.approx(float(objective), abs=1e-4)


def test_found_suffixes_are_stable_where_tokens_merge() -> None:
    found = run(gcg(), target=speaking(Merging()), task=Printable())
    ids = suffixes(found).ids_EL
    assert ids.shape[1] == LENGTH
    assert (ids >= 0).all()
    for text, own in zip(suffixes(found).texts, ids, strict=True):
        assert Merging()(text)["input_ids"] == own.tolist()


def test_a_suffix_that_grows_is_no_suffix_and_flagged() -> None:
    found = run(Says("far too long a text", [4, 5, 6, 7]))
    assert found.row.recovery.k == 0
    assert found.row.controls.nothing.k == 0
    assert "no-suffix" in found.row.flag_names
    assert (suffixes(found).ids_EL == -1).all()


def test_prompts_that_do_not_survive_tokenisation_are_one_clear_line() -> None:
    with pytest.raises(UserError, match="does not survive decoding") as caught:
        run(gcg(), target=speaking(Forgetful()))
    assert "\n" not in str(caught.value)


def test_gcg_finds_more_than_a_random_suffix_and_stays_in_its_vocabulary() -> None:
    found = run(gcg(steps=12))
    row = found.row
    assert (row.perturbation.kind, row.perturbation.length) == ("tokens", LENGTH)
    assert row.recovery.k > row.controls.random_direction.k
    assert (row.controls.nothing.k, row.norm.mean, row.curve.points) == (0, None, ())
    texts = suffixes(found).texts
    assert all(text.isprintable() for text in texts)


def test_gcg_does_not_depend_on_the_batch() -> None:
    whole, parts = run(gcg(), limit=8), run(gcg(), limit=8, batch_size=3)
    assert torch.equal(suffixes(whole).ids_EL, suffixes(parts).ids_EL)


def test_without_a_gradient_gcg_searches_blindly_and_says_so() -> None:
    class Detached(Clamp):
        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            return super().intervene(site, resid_BTD.detach())

    row = run(gcg(), defense=Detached(Clamp.Config(latents=8, multiplier=0.3))).row
    assert "no-gradient" in row.flag_names
    assert row.recovery.k > 0


@pytest.mark.parametrize(
    ("one", "several"),
    [
        (gcg(margin=9.0), gcg(margin=9.0, starts=3)),
        (
            Soft(Soft.Config(length=LENGTH, steps=4, margin=9.0)),
            Soft(Soft.Config(length=LENGTH, steps=4, margin=9.0, starts=3)),
        ),
    ],
    ids=["gcg", "soft-suffix"],
)
def test_further_starts_lose_nothing_and_gain_something(one: Attack, several: Attack) -> None:
    before, after = run(one, limit=8).records, run(several, limit=8).records
    gained = [
        b.objective_recovered - a.objective_recovered for a, b in zip(before, after, strict=True)
    ]
    assert min(gained) > -1e-4
    assert max(gained) > 1e-2


def test_an_allowance_ends_the_search() -> None:
    whole = run(gcg(margin=50.0), limit=8).records[0].flops
    short = run(gcg(margin=50.0), limit=8, flops=whole / 2).records[0].flops
    assert 0 < short < 0.7 * whole


@pytest.mark.parametrize("attack", [gcg(), Soft(Soft.Config(length=LENGTH, steps=4))], ids=type)
def test_a_suffix_cannot_move_what_comes_before_it(attack: Attack) -> None:
    class Early(TinyTask):
        """Drift is measured at a token in the middle, which no suffix reaches."""

        def positions(self, example: Example) -> tuple[int, ...]:
            return (len(example.prompt) // 2,)

    drift = run(attack, task=Early()).row.drift
    assert drift["perturbed"].preactivation_linf.max == pytest.approx(0, abs=1e-5)
    assert (drift["readout"].preactivation_linf.median or 0) > 1e-2


@pytest.mark.parametrize("kind", ["soft", "tokens"])
def test_a_drift_penalty_lowers_drift(kind: str) -> None:
    def attack(weight: float) -> Attack:
        if kind == "tokens":
            return gcg(drift_penalty=weight)
        return Soft(Soft.Config(length=LENGTH, steps=10, drift_penalty=weight))

    without, held = (run(attack(weight), limit=32, budget=2.0) for weight in (0.0, 3.0))
    drifts = [[line.drift["readout"]["l2"] for line in r.records] for r in (without, held)]
    assert wilcoxon(drifts[0], drifts[1], alternative="greater").pvalue < 0.01
