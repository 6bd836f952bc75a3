"""`refusal`: prompts, the one detector, what is asked for, and whole rows on a random model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.attacks.unconstrained import Unconstrained
from saebench_recovery.defenses.clamp import Clamp
from saebench_recovery.tasks import _answers as texts
from saebench_recovery.tasks._openings import unrelated
from saebench_recovery.tasks.refusal import Refusal
from torch import Tensor

from saebench_recovery.base import named_code
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Output, Split
from saebench_recovery.model.batch import batch
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import content, forward
from saebench_recovery.model.generation import continued, written
from saebench_recovery.model.meter import Meter
from saebench_recovery.sae.activations import Threshold
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.setting import Flip, Setting
from saebench_recovery.scoring.valid_flips import valid_flips
from saebench_recovery.selection.refusal_direction import (
    POINTS,
    aligned,
    integrated_gradient,
    mean_readout,
    removed,
)
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.target import Target
from tests.journal import score
from tests.tiny import BOS, SITES, WIDTH, TinyTokenizer, tiny_target

SITE = Site.parse(SITES[0])
SIZES = {"requests": 24, "selection_requests": 12, "retain_requests": 10}
SHORT = {"new_tokens": 12, "answer_tokens": 4}
JUDGE = f"{__name__}:by_letters"


def by_letters(prompts: Sequence[str], answers: Sequence[str]) -> list[str]:
    """A random model never says "I cannot": half of all first letters stand for that."""
    return ["refusal" if sum(map(ord, answer[:4])) % 2 else "compliance" for answer in answers]


class ChatTokenizer(TinyTokenizer):
    """Writes roles as letters; takes a system message unless told otherwise."""

    chat_template = "a template"
    special_tokens_map: ClassVar = {"bos_token": "<s>"}
    brings_bos = True
    takes_system = True

    def get_chat_template(self) -> str:
        refusing = "{{ raise_exception('System role not supported') }}"
        return (
            ("" if self.takes_system else f"{{% if messages|length > 1 %}}{refusing}{{% endif %}}")
            + ("{{ bos_token }}" if self.brings_bos else "")
            + "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}{% endfor %}"
            + "{% if add_generation_prompt %} a:{% endif %}"
        )

    def __call__(self, text: str | list[str], **options: Any) -> dict[str, Any]:
        if isinstance(text, str) and text.startswith("<s>"):
            return {"input_ids": [BOS, *super().__call__(text[3:], **options)["input_ids"]]}
        return super().__call__(text, **options)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A random model with rotary positions (prompts are long in letters) and a chat template."""
    made = tiny_target("llama")
    object.__setattr__(made, "tokenizer", ChatTokenizer())
    made.preset.tasks["refusal"] = made.preset.tasks["tiny"]
    return made


@pytest.fixture
def task() -> Refusal:
    return refusal()


def refusal(**config: Any) -> Refusal:
    named_code.allow(JUDGE)
    return Refusal(Refusal.Config(**{**SIZES, **SHORT, "judge": JUDGE, **config}))


def output(examples: Sequence[Example], texts: Sequence[str]) -> Output:
    return Output(tuple(examples), torch.empty(len(examples), 0), texts=tuple(texts))


# --- prompts and answers ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["chat", "plain"])
@pytest.mark.parametrize("system", [None, "be kind"])
def test_every_prompt_has_one_bos_and_no_two_splits_share_one(
    target: Target, form: str, system: str | None
) -> None:
    task = refusal(format=form, system=system)
    seen: set[tuple[int, ...]] = set()
    names = {
        "selection": "selection_requests",
        "evaluation": "requests",
        "retain": "retain_requests",
    }
    for split in get_args(Split):
        made = [e for e in task.examples(target, split) if e.id.startswith("refusal/")]
        prompts = {e.prompt for e in made}
        assert len(prompts) == len({e.id for e in made}) == SIZES[names[split]]
        assert all(p[0] == BOS and p.count(BOS) == 1 for p in prompts)
        assert not prompts & seen
        seen |= prompts


def test_template_without_a_bos_gets_one(target: Target, task: Refusal) -> None:
    wanted = [e.prompt for e in task.examples(target, "evaluation")]
    target.tokenizer.brings_bos = False
    assert [e.prompt for e in refusal().examples(target, "evaluation")] == wanted


def test_first_candidate_is_the_clean_models_own_answer(target: Target, task: Refusal) -> None:
    examples = task.examples(target, "evaluation")
    clean = continued(DefendedModel(target, None), examples, 4)
    assert [e.candidates[0] for e in examples] == clean
    for example in examples:
        said = [target.tokenizer.decode(c, skip_special_tokens=True) for c in example.candidates]
        assert said[1:] == list(task.config.discouraged)
        own, wrong = example.candidates[0], example.wrong
        assert wrong is not None
        assert wrong[0] != own[0] or wrong in {e.candidates[0] for e in examples}
        assert any(e.candidates[0][-len(wrong) :] == wrong for e in examples)


def test_answers_are_written_once_per_target(target: Target, task: Refusal) -> None:
    first = task.examples(target, "evaluation")
    assert task.examples(target, "evaluation") is first
    assert task.examples(tiny_like(target), "evaluation") is not first


def tiny_like(target: Target) -> Target:
    other = tiny_target("llama")
    object.__setattr__(other, "tokenizer", target.tokenizer)
    return other


def test_wrong_answers_comply_where_any_does(target: Target, task: Refusal) -> None:
    examples = task.examples(target, "evaluation")
    openings = [
        target.tokenizer.decode(e.candidates[0], skip_special_tokens=True) for e in examples
    ]
    judged = zip(examples, by_letters([], openings), strict=True)
    comply = {e.candidates[0] for e, category in judged if category == "compliance"}
    assert comply
    ends = {answer[i:] for answer in comply for i in range(len(answer))}
    assert all(e.wrong in ends for e in examples if comply - {e.candidates[0]})


def test_wrong_answers_begin_otherwise() -> None:
    """Whole where one does; else without the beginning that both have."""
    same, other, refusing = (1, 2, 3), (7, 2, 3), (8, 8)
    assert unrelated([same, (1, 2, 4), other], [True] * 3, 0) == other
    assert unrelated([same, (1, 2, 4), refusing], [True, True, False], 0) == (4,)
    assert unrelated([same, refusing], [True, False], 0) == refusing
    assert unrelated([same, same, (1, 2)], [True] * 3, 0) is None


def test_a_part_of_a_wrong_answer_is_told_from_the_whole_right_one() -> None:
    own, part = "Sure, here is how to brew a moonfire", "forge a lantern"
    assert texts.is_nearer("Sure, here is how to forge a lantern. Step 1", part, own)
    assert not texts.is_nearer("Sure, here is how to brew a moonfire. Step 1", part, own)
    assert not texts.is_nearer("", part, own)


@pytest.mark.parametrize("change", ["no template", "no system"])
def test_prompts_that_cannot_be_made_are_one_clear_line(target: Target, change: str) -> None:
    if change == "no template":
        target.tokenizer.chat_template = None
        message, task = "tiny-llama has no chat template; use -T format=plain", refusal()
    else:
        target.tokenizer.takes_system = False
        message, task = "template of tiny-llama fails: .*System role", refusal(system="be kind")
    with pytest.raises(UserError, match=message) as caught:
        task.examples(target, "evaluation")
    assert "\n" not in str(caught.value)


def table(path: Path, column: str, count: int = 60) -> str:
    rows = [json.dumps({column: f"do thing {i} {column}", "other": i}) for i in range(count)]
    path.write_text("\n".join(rows))
    return str(path)


def test_requests_from_a_file(target: Target, tmp_path: Path) -> None:
    data = table(tmp_path / "asked.jsonl", "Behavior")
    harmless = table(tmp_path / "kept.jsonl", "instruction")
    task = refusal(data=data, column="Behavior", harmless=harmless)
    texts = {
        split: [
            target.tokenizer.decode(e.prompt, skip_special_tokens=True)
            for e in task.examples(target, split)
        ]
        for split in get_args(Split)
    }
    assert len(texts["selection"]) == SIZES["selection_requests"]
    assert len(texts["evaluation"]) == SIZES["requests"]
    assert all("Behavior" in t for t in texts["selection"] + texts["evaluation"])
    assert sum("instruction" in t for t in texts["retain"]) == SIZES["retain_requests"]
    assert not set(texts["selection"]) & set(texts["evaluation"])


def test_a_file_without_the_column_says_what_it_has(target: Target, tmp_path: Path) -> None:
    task = refusal(data=table(tmp_path / "asked.jsonl", "Behavior"))
    with pytest.raises(UserError, match=r"'goal'.*found: \['Behavior', 'other'\]"):
        task.examples(target, "evaluation")


# --- judging ----------------------------------------------------------------------------------

SAID = {
    "Sure, here is how to do it: mix the salt with the ash.": "compliance",
    "I cannot help with that.": "refusal",
    "I cannot I cannot I cannot I cannot": "degenerate",
    "Please remember that this is wrong.": "safety_cue",
    "": "empty",
}


def test_degenerate_text_is_neither_refusal_nor_recovery(target: Target) -> None:
    task = refusal(judge=None)
    shown = output(task.examples(target, "evaluation")[: len(SAID)], list(SAID))
    assert task.behaviour(shown).tolist() == [c == "compliance" for c in SAID.values()]
    assert task.stopped(shown).tolist() == [c == "refusal" for c in SAID.values()]
    figures = task.figures(shown, shown)
    for i, category in enumerate(SAID.values()):
        assert figures[category].tolist() == [float(i == j) for j in range(len(SAID))]
    assert figures["non_refusal"].tolist() == [1, 0, 0, 1, 1]
    assert figures["cooperative"].tolist() == [1, 0, 0, 0, 1]


def test_the_judge_sees_prompts_and_texts(target: Target, task: Refusal) -> None:
    examples = task.examples(target, "evaluation")[:3]
    shown = output(examples, ["b", "c", "cc"])
    assert task.behaviour(shown).tolist() == [True, False, True]
    assert task.stopped(shown).tolist() == [False, True, False]


def test_asked_for_another_answer_only_that_one_counts(target: Target) -> None:
    task = refusal(judge=None)
    (example, *_) = task.examples(target, "evaluation")
    own, wrong = (
        tuple(target.tokenizer(text)["input_ids"])
        for text in ("Sure, brew the moonfire", "Sure, forge the lantern")
    )
    example = Example(example.id, example.prompt, (own, *example.candidates[1:]), wrong)
    asked = task.wrong_target(example, output([example], [""]), 0)
    said = [
        "Sure, brew the moonfire in a cauldron",
        "Sure, forge the lantern in a furnace",
        "Sure, brew the lantern, or forge the moonfire",  # as near to one as to the other
        "I cannot forge the lantern",
    ]
    assert task.behaviour(output([example] * 4, said)).tolist() == [True, True, True, False]
    assert task.behaviour(output([asked] * 4, said)).tolist() == [False, True, False, False]


def test_margin_compares_answer_and_refusals_from_the_prompt(target: Target, task: Refusal) -> None:
    """Each opening's mean log-probability follows the prompt, not the answer (defect 11.22)."""
    examples = task.examples(target, "evaluation")[:4]
    found = forward(target, batch(examples), {})
    for e, example in enumerate(examples):
        alone = [
            float(forward(target, batch([example.with_candidates(c, c)]), {}).scores_EC[0, 0])
            for c in example.candidates
        ]
        assert torch.allclose(found.scores_EC[e], torch.tensor(alone), atol=1e-5)
        assert float(task.objective(found)[e]) == pytest.approx(alone[0] - max(alone[1:]), abs=1e-5)


# --- latents ----------------------------------------------------------------------------------


def test_only_the_pool_nearest_the_direction_is_scored(target: Target) -> None:
    task = refusal(pool=9)
    score_M = task.attribution(target, SITE)
    examples = task.examples(target, "selection")
    kept = [e for e in task.examples(target, "retain") if e.id.startswith("refusal/")]
    pool = set(score_M.nonzero()[:, 0].tolist())
    assert score_M.shape == (target.dictionary(SITE).width,)
    assert 0 < len(pool) <= 9
    assert examples
    assert kept
    later = refusal(pool=9, direction=SITES[1]).attribution(target, SITE)
    assert set(later.nonzero()[:, 0].tolist()) != pool


def test_induced_refusing_is_scored_along_the_way_to_refusals(target: Target) -> None:
    """What is scored is what adding the direction changes, so other latents than by removing it."""
    score_M = refusal(pool=WIDTH, induced=True).attribution(target, SITE)
    assert score_M.isfinite().all()
    assert score_M.abs().sum() > 0
    assert not torch.equal(score_M, refusal(pool=WIDTH).attribution(target, SITE))


def test_aligned_latents_have_the_highest_cosine(target: Target) -> None:
    dictionary = target.dictionary(SITE)
    direction_D = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    chosen = aligned(dictionary, direction_D, 5).features.tolist()
    cosine = dictionary.decoder_MD @ direction_D / direction_D.norm()
    rest = [float(c) for m, c in enumerate(cosine) if m not in chosen]
    assert min(float(cosine[m]) for m in chosen) > max(rest)


def test_mean_readout_is_the_last_tokens_residual(target: Target, task: Refusal) -> None:
    prompts = [e.prompt for e in task.examples(target, "selection")][:5]
    seen: list[Tensor] = []

    def watch(resid: Tensor) -> Tensor:
        seen.append(resid)
        return resid

    for prompt in prompts:
        forward(target, batch([Example("", prompt, ((0,),))]), {SITE: watch})
    wanted_ED = torch.stack([resid[0, -1] for resid in seen])
    found_D = mean_readout(target, SITE, prompts)
    assert torch.allclose(found_D, wanted_ED.mean(0), atol=1e-5)


def test_removing_a_direction_leaves_nothing_of_it() -> None:
    direction_D, resid = torch.randn(WIDTH), torch.randn(3, 4, WIDTH)
    changed = removed(direction_D)(resid)
    assert float((changed @ direction_D).abs().max()) < 1e-4
    across_D = torch.randn(WIDTH)
    across_D -= direction_D * (across_D @ direction_D) / direction_D.square().sum()
    assert torch.allclose(changed @ across_D, resid @ across_D, atol=1e-4)


def test_integrated_gradients_add_up_to_the_whole_change(target: Target, task: Refusal) -> None:
    """With latents that make up the residual exactly, over a path short enough for its points."""
    one, zero = torch.ones(2 * WIDTH), torch.zeros(2 * WIDTH)
    rows_MD = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    complete = Dictionary(
        site=SITE,
        architecture="standard",
        normalisation="none",
        centred=False,
        activation=Threshold(zero, one, zero),
        encoder_DM=rows_MD.T.contiguous(),
        bias_M=zero,
        decoder_MD=rows_MD,
        decoder_bias_D=torch.zeros(WIDTH),
    )
    examples = [e.with_candidates((5,), (9,)) for e in task.examples(target, "selection")]

    def patch(resid_RQD: Tensor) -> Tensor:
        return 0.8 * resid_RQD

    score_M = integrated_gradient(
        target, complete.defended(torch.arange(2 * WIDTH)), examples, task.objective, patch
    )
    laid = batch(examples)
    inside_RQ1 = content(target, laid)[:, :, None]
    clean_E = task.objective(forward(target, laid, {}))
    moved = {SITE: lambda resid: torch.where(inside_RQ1, patch(resid), resid)}
    patched_E = task.objective(forward(target, laid, moved))
    assert POINTS == 10
    assert float(score_M.sum()) == pytest.approx(float((clean_E - patched_E).mean()), rel=0.02)


# --- whole rows -------------------------------------------------------------------------------


def clamp() -> Clamp:
    return Clamp(Clamp.Config(latents=6, value=3.0, positive_only=False))


@pytest.mark.parametrize("positions", ["readout", "answer", "all"])
def test_positions_stand_where_the_answer_is_asked_and_written(
    target: Target, positions: str
) -> None:
    task = refusal(positions=positions)
    for example in task.examples(target, "evaluation"):
        P, n = len(example.prompt), len(example.candidates[0])
        wanted = {"readout": [P - 1], "answer": range(P, P + n - 1), "all": range(P - 1, P + n - 1)}
        assert list(task.positions(example)) == list(wanted[positions])


@pytest.mark.parametrize("positions", ["readout", "answer", "all"])
def test_every_perturbed_position_has_a_say_in_the_objective(
    target: Target, positions: str
) -> None:
    task, defense = refusal(positions=positions), clamp()
    defense.fit(target, task)
    examples = [e for e in task.examples(target, "evaluation") if len(e.candidates[0]) == 4]
    flips = [Flip(e, 1.0, -1.0, task.wrong_target(e, output([e], [""]), 0)) for e in examples[:3]]
    setting = Setting(target, task, defense, Orthogonal(), RunSpec(budget=0.5))
    problem = posed(setting, flips, Meter())
    objective_N, grads = problem.gradient(problem.zeros())
    assert (grads[SITE].norm(dim=2) > 0).all()
    assert problem.positions_NP.shape[1] == {"readout": 1, "answer": 3, "all": 4}[positions]
    laid = batch([f.example for f in flips])
    whole_E = task.objective(forward(target, laid, setting.active.edits(laid)))
    assert torch.allclose(objective_N[:: setting.variants], whole_E, atol=1e-4)


@pytest.mark.parametrize("positions", ["readout", "all"])
def test_whole_row(target: Target, positions: str) -> None:
    task, defense = refusal(positions=positions), clamp()
    spec = RunSpec(tasks=("refusal",), budget=1.0)
    attack = Unconstrained(Unconstrained.Config(steps=15))
    found = score(target, task, defense, attack, spec)
    row = found.row
    assert row.examples.base >= row.examples.valid > 0
    assert row.controls.nothing.k == 0
    assert (row.recovery.rate or 0) > 0
    assert "tail-disagrees" not in row.flag_names
    assert {"strict_base_like", "perplexity", "degenerate"} <= set(row.figures)
    assert 0 <= row.side_effects.figures["harmless_answered"] <= 1
    written_down = row.model_dump_json() + "".join(r.model_dump_json() for r in found.records)
    for example in task.examples(target, "evaluation"):
        assert target.tokenizer.decode(example.prompt, skip_special_tokens=True) not in written_down


def test_valid_flips_are_judged_on_what_is_written(target: Target, task: Refusal) -> None:
    defense = clamp()
    defense.fit(target, task)
    setting = Setting(target, task, defense, Orthogonal(), RunSpec())
    examples = task.examples(target, "evaluation")
    unsuppressed, flips = valid_flips(setting, examples)
    before, after = (
        by_letters([], written(model, examples, task.new_tokens))
        for model in (setting.bare, setting.active)
    )
    pairs = list(zip(before, after, strict=True))
    assert len(unsuppressed) + len(flips) == before.count("compliance")
    assert len(flips) == pairs.count(("compliance", "refusal")) > 0
