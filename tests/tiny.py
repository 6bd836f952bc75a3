"""Tiny random models with random SAEs, and a task on random tokens: what property tests run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
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

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Split, Task
from saebench_recovery.model.hooks import home_of
from saebench_recovery.sae.activations import Threshold
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.selection.latent_scores import activation_gradient
from saebench_recovery.targets.presets import Preset, TaskPreset
from saebench_recovery.targets.target import Target

ARCHITECTURES = ("gpt2", "neox", "llama", "qwen2", "gemma2", "gemma3")
WIDTH, LAYERS, VOCABULARY, LATENTS, BOS, EOS = 32, 4, 101, 96, 1, 2
WINDOW = 8  # of the sliding layers: shorter than most prompts, so that it binds
SITES = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


def tiny_model(
    architecture: str, seed: int = 0, vocabulary: int = VOCABULARY, context: int | None = None
) -> nn.Module:
    """A random decoder with weights large enough for errors to show."""
    torch.manual_seed(seed)
    if context is None:  # where positions have weights, more of them are other weights
        context = 64 if architecture == "gpt2" else 256
    size: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": context,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": 0,
    }
    grouped = {"num_key_value_heads": 2, "head_dim": 8}
    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    windowed = {**grouped, "sliding_window": WINDOW, "layer_types": kinds}
    makers: dict[str, Callable[[], nn.Module]] = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**size)),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**size)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**size, **grouped)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**size, num_key_value_heads=2)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**size, **windowed)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**size, **windowed)),
    }
    model = makers[architecture]().eval()
    for weight in model.parameters():
        kept = weight.data if weight.ndim == 1 else 0.0  # norms' gains
        weight.data = torch.randn_like(weight) * 0.15 + kept
    return model


def tiny_dictionary(
    site: Site,
    width: int = WIDTH,
    seed: int = 0,
    latents: int = LATENTS,
    device: torch.device | str = "cpu",
) -> Dictionary:
    """A random JumpReLU SAE of which about a third of the latents are on."""
    drawn = torch.Generator().manual_seed(seed)
    decoder_MD = nn.functional.normalize(torch.randn(latents, width, generator=drawn), dim=1)
    zero, one = torch.zeros(latents, device=device), torch.ones(latents, device=device)
    return Dictionary(
        site=site,
        architecture="jumprelu",
        normalisation="none",
        centred=False,
        activation=Threshold(one * 0.3, one, zero),
        encoder_DM=decoder_MD.T.contiguous(),
        bias_M=zero,
        decoder_MD=decoder_MD,
        decoder_bias_D=torch.zeros(width, device=device),
        device=device,
    )


class TinyTokenizer(SimpleNamespace):
    """Every character is a token; printable ASCII survives both ways."""

    bos_token_id = BOS
    eos_token_id = EOS
    all_special_ids = (0, BOS, EOS)

    def __len__(self) -> int:
        return VOCABULARY

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        ids = [[3 + ord(c) % (VOCABULARY - 3) for c in t] for t in texts]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        codes = (i - 3 for i in ids if i >= 3)
        return "".join(chr(code if code >= 32 else code + VOCABULARY - 3) for code in codes)


def tiny_target(
    architecture: str, sites: Sequence[str] = SITES, model: nn.Module | None = None
) -> Target:
    """A target with a dictionary at each site; its task is defended at the first one."""
    places = [Site.parse(site) for site in sites]
    preset = Preset(description="", model="", saes={}, tasks={"tiny": TaskPreset(site=sites[0])})
    model = model or tiny_model(architecture)
    device = home_of(model)
    return Target(
        f"tiny-{architecture}",
        model,
        TinyTokenizer(),
        {site: tiny_dictionary(site, seed=i, device=device) for i, site in enumerate(places)},
        preset,
        [f"neutral text, the {i}th of it" for i in range(6)],
        _retained(model),
    )


@torch.no_grad()
def _retained(model: nn.Module) -> list[tuple[str, str, tuple[str, ...]]]:
    """Questions with what the model itself prefers as the answer."""
    encode, letters = TinyTokenizer(), "abcdef"
    facts = []
    for i in range(8):
        prompt = f"question {i}"
        ids = torch.tensor([[BOS, *encode(prompt)["input_ids"]]], device=home_of(model))
        logits_V = model(input_ids=ids).logits[0, -1]
        ordered = sorted(letters, key=lambda letter: -logits_V[encode(letter)["input_ids"][0]])
        facts.append((prompt, ordered[0], tuple(ordered[1:])))
    return facts


@cache
def shared_target(architecture: str, sites: tuple[str, ...] = SITES) -> Target:
    """A target that tests only read."""
    return tiny_target(architecture, sites)


class TinyTask(Task):
    """Whether a random model prefers one fixed token to another after a random prompt."""

    name = "tiny"
    size = 48
    candidates: tuple[tuple[int, ...], ...] = ((11,), (21,))
    wrong: tuple[int, ...] | None = (31,)

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        if split == "retain":
            return target.retained_examples()
        drawn = torch.Generator().manual_seed({"selection": 1, "evaluation": 2}[split])
        return [self._example(f"{split}/{i}", i, drawn) for i in range(self.size)]

    def attribution(self, target: Target, site: Site) -> Tensor:
        examples = self.examples(target, "selection")
        return activation_gradient(target, site, examples, self.objective)

    def _example(self, name: str, place: int, drawn: torch.Generator) -> Example:
        """A prompt of 7 to 15 tokens; two neighbours count as one source item."""
        length = 6 + int(torch.randint(0, 9, (1,), generator=drawn))
        words = torch.randint(3, VOCABULARY, (length,), generator=drawn).tolist()
        cluster = f"{name.removesuffix(str(place))}{place // 2}"
        return Example(name, (BOS, *words), self.candidates, self.wrong, cluster=cluster)
