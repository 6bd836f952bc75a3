"""Prompts, readouts, answers and touched positions, decoded: every task on every model family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from huggingface_hub import constants
from saebench_recovery.attacks.gcg import GreedyCoordinateGradient
from saebench_recovery.defenses.clamp import Clamp
from saebench_recovery.tasks.ioi import IndirectObject
from saebench_recovery.tasks.refusal import Refusal
from saebench_recovery.tasks.tpp import TargetedProbe
from saebench_recovery.tasks.unlearning import Unlearning
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Split, Task, TokenSuffix
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.drift import DriftRule
from saebench_recovery.perturbations.space import Posing
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens
from saebench_recovery.perturbations.windows import lay_out
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.spec import Limits
from saebench_recovery.targets.chat import chat_prompt
from saebench_recovery.targets.organism import world
from saebench_recovery.targets.presets import presets
from saebench_recovery.targets.target import Target
from tests.families import FAMILIES, GEMMA_CHAT, LLAMA3_CHAT, SITE, Recorder, family_target

REQUESTS = {"requests": 3, "selection_requests": 3, "retain_requests": 3}
CUT = 20  # tokens read of a biography
ANSWERS = {"new_tokens": 4, "answer_tokens": 3}
KINDS: tuple[world.Kind, ...] = ("forbidden", "harmless")
LETTERS: tuple[Split, ...] = ("selection", "retain")  # a random model knows no answer by letter
GEMMA_270M = "gemma-3-270m, as it is"


def ioi() -> Task:
    return IndirectObject(IndirectObject.Config(prompts=8, selection_prompts=8))


def tpp() -> Task:
    return TargetedProbe(
        TargetedProbe.Config(texts=2, selection_texts=2, label="nurse", context=CUT)
    )


def letters() -> Task:
    return Unlearning(Unlearning.Config(examples=24))


def cloze() -> Task:
    return Unlearning(Unlearning.Config(examples=6, format="cloze"))


def refusal(form: Any) -> Refusal:
    return Refusal(Refusal.Config(format=form, positions="all", **REQUESTS, **ANSWERS))


TASKS = {
    "ioi": (ioi, get_args(Split)),
    "tpp": (tpp, get_args(Split)),
    "unlearning, letters": (letters, LETTERS),
    "unlearning, cloze": (cloze, get_args(Split)),
    "refusal, plain": (lambda: refusal("plain"), get_args(Split)),
    "refusal, chat": (lambda: refusal("chat"), get_args(Split)),
}


@pytest.fixture(scope="module", params=[*FAMILIES, GEMMA_270M])
def target(request: pytest.FixtureRequest) -> Recorder:
    if request.param != GEMMA_270M:
        return family_target(FAMILIES[request.param])
    from transformers import AutoTokenizer

    digest = str(presets()["gemma-3-270m"].revision)
    cached = Path(constants.HF_ASSETS_CACHE, "saebench-recovery").glob(f"*-{digest[:16]}")
    place = next(cached, None) or pytest.skip("its tokenizer is not in the cache")
    own = replace(FAMILIES["gemma3"], chat=False)
    return family_target(own, AutoTokenizer.from_pretrained(place))


@pytest.fixture(scope="module", params=TASKS)
def made(request: pytest.FixtureRequest, target: Recorder) -> tuple[Task, list[Example]]:
    """A task and its examples of all splits."""
    if request.param == "refusal, chat" and not target.tokenizer.chat_template:
        pytest.skip("no chat template")
    make, splits = TASKS[request.param]
    task = make()
    task.fit(target, SITE)
    return task, [e for split in splits for e in task.examples(target, split)]


def said(target: Target, ids: Sequence[int]) -> str:
    text: str = target.tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def behind(target: Target, before: Sequence[int], ids: Sequence[int]) -> str:
    """What some tokens say behind others."""
    return said(target, [*before, *ids])[len(said(target, before)) :]


def behind_bos(target: Target, example: Example) -> tuple[int, ...]:
    return example.prompt[int(target.bos is not None) :]


def content(example: Example) -> tuple[int, ...]:
    """The prompt behind its first token, which is a sink of attention, BOS or not."""
    return example.prompt[1:]


class Everywhere(Clamp):
    """Moves every token it is given."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD + 100


# --- every task, every family -----------------------------------------------------------------


def test_a_prompt_is_its_text_behind_one_bos(
    target: Recorder, made: tuple[Task, list[Example]]
) -> None:
    task, examples = made
    mark = target.tokenizer.bos_token_id
    wanted = [0] if target.preset.bos and mark is not None else []
    assert examples
    for example in examples:
        assert [i for i, t in enumerate(example.prompt) if t == mark] == wanted
        text = said(target, behind_bos(target, example))
        if example.prompt in target.prompts:
            assert text == target.prompts[example.prompt]
        elif isinstance(task, Refusal):
            assert text == rendered(target, task, example)
        else:
            assert len(example.prompt) == CUT
            assert any(whole.startswith(text) for whole in target.prompts.values())


def rendered(target: Recorder, task: Refusal, example: Example) -> str:
    """The request in the template, less the BOS; a suffix would stand at the request's end."""
    asked = said(target, example.prompt[: task.insertion(example)])
    every = {
        r.text for kind in KINDS for split in get_args(Split) for r in task._requests(kind, split)
    }
    (request,) = [r for r in every if asked.endswith(r)]
    chat = [{"role": "user", "content": request}]
    text: str = target.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    return text.removeprefix(target.tokenizer.bos_token or "")


def test_answers_are_what_follows_the_prompt(
    target: Recorder, made: tuple[Task, list[Example]]
) -> None:
    task, examples = made
    for example in examples:
        if example.id in target.answers:
            text, answers = target.prompts[example.prompt], target.answers[example.id]
            given = (*example.candidates, *([example.wrong] if example.wrong else []))
            for ids, answer in zip(given, answers, strict=True):
                assert answer.startswith(" ")
                assert behind(target, example.prompt, ids) == answer
                assert target.encode(text + answer) == (*example.prompt, *ids)
        elif isinstance(task, Refusal):
            refusals = [said(target, ids).strip() for ids in example.candidates[1:]]
            assert refusals == list(task.config.discouraged)


def posing(target: Target, task: Task, examples: Sequence[Example]) -> Posing:
    """Each example alone, with no budget and nothing to reach."""
    none_E = torch.zeros(len(examples))
    groups = [[example] for example in examples]
    model = DefendedModel(target, None)
    rule = DriftRule(Limits(), {})
    return Posing(model, task, groups, none_E[:, None], "absolute", {}, none_E, 0, Meter(), rule)


def test_readout_and_perturbed_positions_in_the_attacked_window(
    target: Recorder, made: tuple[Task, list[Example]]
) -> None:
    task, examples = made
    own = [e for e in examples if not e.id.startswith("retain/")][::5]
    positions_EP = pad_sequence([torch.tensor(task.positions(e)) for e in own], True, -1)
    windows = lay_out(posing(target, task, own), positions_EP, [SITE])
    window = windows.engine.batch
    column_RP = window.columns(positions_EP)
    for e, example in enumerate(own):
        row = e * window.rows_per_example
        begin, readout = int(window.position_RQ[row, 0]), int(window.readout_E[e])
        assert begin == min(task.positions(example))
        assert begin + readout == len(example.prompt) - 1
        assert int(window.ids_RQ[row, readout]) == example.prompt[-1]
        perturbed = [int(window.ids_RQ[row, c]) for c in column_RP[row].tolist() if c >= 0]
        if isinstance(task, TargetedProbe):
            assert said(target, perturbed) == said(target, content(example))
        elif isinstance(task, Refusal):  # the readout, and the answer but for its last token
            answer = (*example.prompt[-1:], *example.candidates[0][:-1])
            assert said(target, perturbed) == said(target, answer)
        else:
            assert target.prompts[example.prompt].endswith(said(target, perturbed))
            assert said(target, perturbed) == said(target, example.prompt[-1:])


def test_the_defense_acts_on_all_of_the_text_and_answer_and_on_no_bos(
    target: Recorder, made: tuple[Task, list[Example]]
) -> None:
    task, examples = made
    own = examples[::5]
    everywhere = Everywhere(Clamp.Config(features=(0,)))
    everywhere.defend(target, task, [SITE])
    laid = target.batch(own)

    def moved(batch: Batch) -> Tensor:
        trace = Trace()
        whole_pass(DefendedModel(target, everywhere), task, batch, trace=trace)
        return (trace.after[SITE] != trace.before[SITE]).any(2)

    moved_RQ = moved(replace(laid, apart=True))
    if laid.packing is not None:  # every token that is run moves as it does in a row of its own
        known_RQ = laid.packing.known_EX.view_as(moved_RQ)
        assert torch.equal(moved(laid) & known_RQ, moved_RQ & known_RQ)
    for row, (ids_Q, moved_Q) in enumerate(zip(laid.ids_RQ, moved_RQ, strict=True)):
        example, c = own[row // laid.rows_per_example], row % laid.rows_per_example
        answer = example.candidates[c if c < len(example.candidates) else 0]
        if laid.forced_RQ is None or example.longest_answer <= 1:
            answer = ()
        else:
            readout = len(example.prompt) - 1
            assert laid.forced_RQ[row, readout : readout + len(answer)].tolist() == list(answer)
        wanted = said(target, (*content(example), *answer))
        assert said(target, ids_Q[moved_Q].tolist()) == wanted


# --- a BOS too many or too few is caught where the model is asked --------------------------------


def llama3() -> Recorder:
    return family_target(FAMILIES["llama3"])


def test_a_template_that_writes_bos_twice_is_refused() -> None:
    target = llama3()
    target.tokenizer.chat_template = "{{ bos_token }}" + LLAMA3_CHAT
    with pytest.raises(UserError, match=r"has BOS at \[0, 1\], but llama takes exactly one"):
        chat_prompt(target, "Brew a tea.")


@pytest.mark.parametrize("template", [GEMMA_CHAT, GEMMA_CHAT.removeprefix("{{ bos_token }}")])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_preset_decides_whatever_the_template_does(template: str, wanted: bool) -> None:
    target = family_target(replace(FAMILIES["gemma3"], bos=wanted))
    target.tokenizer.chat_template = template
    prompt = chat_prompt(target, "Brew a tea.")
    assert prompt.count(target.tokenizer.bos_token_id) == int(wanted)
    assert said(target, prompt[int(wanted) :]).startswith("<start_of_turn>user\nBrew a tea.")


@pytest.mark.parametrize("wanted", [True, False])
def test_no_example_by_hand_gets_past_with_another_number_of_bos(wanted: bool) -> None:
    target = family_target(replace(FAMILIES["pythia"], bos=wanted))
    mark, words = target.tokenizer.bos_token_id, target.encode("Then, Mary")[int(wanted) :]
    for count in range(3):
        example = Example("by hand", (*[mark] * count, *words), ((1,), (2,)))
        if count == int(wanted):
            assert target.batch([example]).examples == (example,)
        else:
            with pytest.raises(UserError, match=r"by hand has BOS at .*, but neox takes"):
                target.batch([example])
    with pytest.raises(UserError, match="a prompt has BOS at"):
        target.encode("Then, <|endoftext|> Mary")


def test_a_suffix_that_spells_a_bos_is_none() -> None:
    target = llama3()
    task, attack = ioi(), GreedyCoordinateGradient(GreedyCoordinateGradient.Config(length=4))
    asked = posing(target, task, task.examples(target, "selection")[:2])
    problem = SuffixTokens.pose(attack, asked)
    wanted = (" to the<|begin_of_text|>", " to the")
    ids_EL = torch.zeros(2, 4, dtype=torch.long)
    at_N = SuffixTokens.of(problem).layout.at_N
    found = problem.admit(TokenSuffix(ids_EL, at_N, wanted))
    assert isinstance(found, TokenSuffix)
    assert found.texts == ("", " to the")
