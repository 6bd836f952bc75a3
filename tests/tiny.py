"""Tiny random models with random SAEs, and a task on random tokens: what property tests run on."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from saebench_recovery.interfaces import Example, Split, Task
from saebench_recovery.sites import Site
from saebench_recovery.target.latents import Dictionary, Threshold
from saebench_recovery.target.presets import Preset, TaskPreset
from saebench_recovery.target.target import Target

ARCHITECTURES = ("gpt2", "neox", "llama", "qwen2", "gemma2", "gemma3")
WIDTH, LAYERS, VOCABULARY, LATENTS, BOS = 32, 4, 101, 96, 1


def tiny_model(architecture: str, seed: int = 0) -> nn.Module:
    """A random decoder; windows of 8 tokens bind on prompts of 10 and more."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "bos_token_id": BOS,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    grouped = {"num_key_value_heads": 2, "head_dim": 8}
    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    makers: dict[str, Any] = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**size, n_positions=64)),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**size)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**size, **grouped)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**size, num_key_value_heads=2)),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**size, **grouped, sliding_window=8, layer_types=kinds)
        ),
        "gemma3": lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(**size, **grouped, sliding_window=8, layer_types=kinds)
        ),
    }
    model: nn.Module = makers[architecture]()
    for weight in model.parameters():  # default inits are so small that errors would not show
        weight.data.copy_(torch.randn_like(weight) * 0.15 + (weight.data if weight.ndim == 1 else 0))
    return model


def tiny_dictionary(site: Site, width: int = WIDTH, seed: int = 0) -> Dictionary:
    """A random JumpReLU SAE of which about a third of the latents are on."""
    drawn = torch.Generator().manual_seed(seed)
    decoder_MD = nn.functional.normalize(torch.randn(LATENTS, width, generator=drawn), dim=1)
    zero, one = torch.zeros(LATENTS), torch.ones(LATENTS)
    return Dictionary(
        site=site,
        architecture="jumprelu",
        normalisation="none",
        centred=False,
        activation=Threshold(one * 0.3, one, zero),
        encoder_DM=decoder_MD.T.contiguous(),
        bias_M=zero,
        decoder_MD=decoder_MD,
        decoder_bias_D=torch.zeros(width),
    )


class TinyTokenizer(SimpleNamespace):
    """Every character is a token."""

    bos_token_id = BOS

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(c) % (VOCABULARY - 3) for c in text]}


def tiny_target(
    architecture: str,
    sites: Sequence[str] = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post"),
) -> Target:
    dictionaries = {Site.parse(s): tiny_dictionary(Site.parse(s), seed=i) for i, s in enumerate(sites)}
    preset = Preset(
        description="", model="", saes={}, tasks={"tiny": TaskPreset(site=sites[0])}
    )
    retained = [("some words", "a", ("b", "c")), ("other words", "d", ("e",))]
    return Target(
        f"tiny-{architecture}",
        tiny_model(architecture),
        TinyTokenizer(),
        dictionaries,
        preset,
        ["neutral text", "a little more of it"],
        retained,
    )


class TinyTask(Task):
    """Whether a random model prefers one random token to another: shown by about half."""

    name = "tiny"

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        if split == "retain":
            return target.retained_examples()
        drawn = torch.Generator().manual_seed({"selection": 1, "evaluation": 2}[split])

        def token() -> int:
            return int(torch.randint(3, VOCABULARY, (1,), generator=drawn))

        def example(i: int) -> Example:
            length = 6 + int(torch.randint(0, 9, (1,), generator=drawn))
            prompt = (BOS, *(token() for _ in range(length)))
            right, other, third = (token(),), (token(),), (token(),)
            return Example(f"{split}/{i}", prompt, (right, other), third, cluster=str(i // 2))

        return [example(i) for i in range(48)]

    def attribution(self, target: Target, site: Site) -> Tensor:
        return torch.arange(1.0, 1 + target.dictionary(site).width)
