"""Special tokens from every place that declares them, templates to the letter, and what fits."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example
from saebench_recovery.model.batch import batch
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.forward import content
from saebench_recovery.model.generation import continued
from saebench_recovery.perturbations.retokenise import Vocabulary
from saebench_recovery.targets import rendering
from saebench_recovery.targets.chat import chat_prompt
from saebench_recovery.targets.presets import Preset
from saebench_recovery.targets.target import Target
from saebench_recovery.training import activations
from tests.families import QWEN_CHAT
from tests.tiny import tiny_dictionary, tiny_model

SITE = Site.parse("blocks.1.hook_resid_post")
CONTEXT = 64
START, END, RESERVED = "<|im_start|>", "<|im_end|>", "<|reserved_1|>"


def tokenizer(**named: Any) -> Any:
    """Bytes as tokens, and behind them some that its added vocabulary marks as special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in (START, END, RESERVED)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


def target(*, bos: bool = True, template: str | None = None, **named: Any) -> Target:
    read = tokenizer(chat_template=template, **named)
    preset = Preset(description="", model="", saes={}, bos=bos, tasks={})
    model = tiny_model("llama", vocabulary=len(read), context=CONTEXT)
    return Target("tiny", model, read, {SITE: tiny_dictionary(SITE)}, preset, [], [])


def chatml(template: str = QWEN_CHAT) -> Target:
    """As SmolLM2's: the BOS begins each turn, and the EOS, which pads too, ends it."""
    return target(template=template, bos_token=START, eos_token=END, pad_token=END)


# --- special tokens --------------------------------------------------------------------------


def test_special_tokens_of_the_added_vocabulary_are_no_text() -> None:
    """None of the three has a name, as in Llama 3's own tokenizer for all but BOS and EOS."""
    made = target(bos=False)
    special = set(made.tokenizer.convert_tokens_to_ids([START, END, RESERVED]))
    assert special <= made.special
    assert not special & set(made.tokenizer.all_special_ids)
    assert not Vocabulary(made).allowed_V[sorted(special)].any()
    row = (5, 6, *sorted(special), 7)
    kept = activations.content(made, batch([Example("", row, ((0,),))]))
    assert kept[0].tolist() == [False, True, False, False, False, True]


def test_ends_that_only_the_model_declares_are_special() -> None:
    made = target(bos=False)
    model: Any = made.model
    model.generation_config.eos_token_id = [9, 12]
    assert {9, 12} <= made.special


@pytest.mark.parametrize("bos", [False, True])
def test_the_first_position_is_no_content_whatever_stands_there(bos: bool) -> None:
    made = target(bos=bos, bos_token=START)
    prompt = made.encode("sinks")
    laid = made.batch([Example("", prompt, ((0,),))])
    kept = content(made, laid)[0].tolist()
    assert kept == [False] + [True] * (len(prompt) - 1)


def test_a_bos_inside_a_prompt_is_no_content_either() -> None:
    made = chatml()
    prompt = chat_prompt(made, "Brew a tea.")
    kept = content(made, made.batch([Example("", prompt, ((0,),))]))[0]
    sinks = set(made.tokenizer.convert_tokens_to_ids([START, END]))
    assert kept.tolist() == [i > 0 and token not in sinks for i, token in enumerate(prompt)]


# --- templates -------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_template_that_marks_turns_by_bos_is_followed_token_by_token(system: str | None) -> None:
    made = chatml()
    messages = [{"role": "user", "content": "Brew a tea."}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = made.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = chat_prompt(made, "Brew a tea.", system)
    assert prompt == tuple(made.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert prompt.count(made.tokenizer.bos_token_id) == len(messages) + 1
    example = Example("asked", prompt, ((5,), (6,)))
    assert made.batch([example]).examples == (example,)
    assert continued(DefendedModel(made, None), [example], 2)


def test_plain_prompts_of_such_a_model_have_one_bos() -> None:
    made = chatml()
    assert made.encode("tea")[0] == made.tokenizer.bos_token_id
    with pytest.raises(UserError, match=r"a prompt has BOS at \[0, 1\]"):
        made.encode(f"{START}user")


def test_only_a_template_may_write_bos_inside() -> None:
    made = target(bos_token=START, template="{{ bos_token }}{{ messages[0].content }}")
    twice = Example("by hand", (*made.encode("tea"), *made.encode("tea")), ((5,),))
    with pytest.raises(UserError, match=r"by hand has BOS at \[0, 4\]"):
        made.batch([twice])


def test_a_bos_twice_in_a_row_is_no_turn() -> None:
    made = chatml(f"{START}{QWEN_CHAT}")
    with pytest.raises(UserError, match="BOS at"):
        chat_prompt(made, "Brew a tea.")


def test_templates_that_read_the_clock_are_told_a_fixed_date() -> None:
    clock = "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
    made = target(template=clock, bos=False)
    said = made.tokenizer.decode(chat_prompt(made, "tea"))
    assert said == f"{rendering.TODAY:%d %b %Y}: tea"
    assert datetime(2026, 1, 1) > rendering.TODAY


# --- what fits -------------------------------------------------------------------------------


def test_a_prompt_over_the_context_is_one_line_with_its_id() -> None:
    made = target(bos=False)
    longest = Example("long/3", (5,) * CONTEXT, ((6,),))
    assert made.batch([longest])
    for example in (
        Example("long/3", (5,) * (CONTEXT + 1), ((6,),)),
        Example("long/3", (5,) * (CONTEXT - 1), ((6, 7),)),
    ):
        with pytest.raises(UserError, match=f"^long/3 takes {CONTEXT + 1} tokens .* {CONTEXT};"):
            made.batch([example])
    with pytest.raises(UserError, match=r"^long/3 takes"):
        continued(DefendedModel(made, None), [longest], 1)


@pytest.mark.parametrize("place", ["prompt", "answer", "wrong"])
def test_a_token_without_an_embedding_is_one_line_with_its_id(place: str) -> None:
    made = target(bos=False)
    outside = made.embedding.weight.shape[0] + 3
    tokens = {"prompt": 5, "answer": 6, "wrong": 7} | {place: outside}
    example = Example("odd/1", (5, tokens["prompt"]), ((tokens["answer"],),), (tokens["wrong"],))
    with pytest.raises(UserError, match=f"^odd/1 has the token {outside}, but the embedding"):
        made.batch([example])
    assert torch.is_tensor(made.batch([Example("", (5, 6), ((7,),))]).ids_RQ)
