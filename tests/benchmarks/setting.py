"""What is timed: a random model of ordinary proportions, and the embedded target where it is built."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from saebench_recovery.defenses.clamp import Clamp
from saebench_recovery.interfaces import Example, Task
from saebench_recovery.recovery.active import ActiveDefense
from saebench_recovery.recovery.meter import Meter
from saebench_recovery.recovery.problem import Problem, build
from saebench_recovery.sites import Site
from saebench_recovery.target.presets import Preset, TaskPreset
from saebench_recovery.target.target import Target
from tests.tiny import BOS, TinyTask, TinyTokenizer, tiny_dictionary

RELATIVE_BUDGET = 0.25


@dataclass(frozen=True)
class Setting:
    """A defended target with prompts to attack at the readout."""

    active: ActiveDefense
    task: Task
    site: Site
    examples: list[Example]

    def problem(self, prompts: int, variants: int = 1) -> Problem:
        """As many prompts, each with its variants, at one budget; no example is ever done."""
        chosen = self.examples[:prompts]
        return build(
            self.active,
            self.task,
            [[example] * variants for example in chosen],
            torch.tensor([[len(example.prompt) - 1] for example in chosen]),
            [self.site],
            torch.full((prompts, variants), RELATIVE_BUDGET),
            torch.full((prompts,), torch.inf),
            seed=0,
            meter=Meter(),
        )


def random_setting(
    *,
    layers: int = 12,
    width: int = 256,
    tokens: int = 128,
    vocabulary: int = 50257,
    dictionary: int = 4096,
    latents: int = 32,
    layer: int = 4,
    prompts: int = 1024,
) -> Setting:
    """A random GPT-2 with a random SAE in the first half of its layers."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=width // 32,
        n_positions=max(tokens, 128),
        bos_token_id=BOS,
        eos_token_id=2,
    )
    site = Site(layer, "hook_resid_post")
    preset = Preset(
        description="", model="", saes={}, tasks={TinyTask.name: TaskPreset(site=str(site))}
    )
    sae = tiny_dictionary(site, width, latents=dictionary)
    model = GPT2LMHeadModel(config)
    target = Target("random", model, TinyTokenizer(), {site: sae}, preset, [], [])
    defense = Clamp(Clamp.Config(latents=latents))
    defense.latents = {site: sae.defended(torch.arange(latents))}
    drawn = torch.randint(3, vocabulary, (prompts, tokens - 1))
    answers = torch.randint(3, vocabulary, (prompts, 2))
    examples = [
        Example(str(i), (BOS, *ids), tuple((a,) for a in pair))
        for i, (ids, pair) in enumerate(zip(drawn.tolist(), answers.tolist(), strict=True))
    ]
    return Setting(ActiveDefense(target, defense), TinyTask(), site, examples)
