"""Tiny random models and SAEs on disk, in the layouts that users and the hub's cache have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from saebench_recovery.targets.knowledge import facts, neutral_texts
from saebench_recovery.targets.organism import world
from saebench_recovery.training.organism.tokenizer import build_tokenizer
from tests.saes import D, M

WIDTH, LAYERS, LATENTS, CONTEXT = 32, 6, 96, 64


def write_model(folder: Path) -> Path:
    """A transformers folder: a random GPT-2 that knows every word it is going to read."""
    prompts = world.indirect_objects("selection", 300) + world.indirect_objects("evaluation", 300)
    asked = [f"{prompt}{answer}" for prompt, answer, _ in facts("general")]
    known = [*(p.text for p in prompts), *neutral_texts("general"), *asked]
    tokenizer = build_tokenizer(known, CONTEXT)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        n_positions=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    for weight in model.parameters():
        weight.data += torch.randn_like(weight) * 0.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_sae(folder: Path, hook: str, *, old: bool = False, width: int = WIDTH) -> Path:
    """A SAELens folder; `old` is the flat configuration from before version 6."""
    described = {"hook_name": hook, "model_name": "gpt2-small", "prepend_bos": True}
    config: dict[str, Any] = {
        "architecture": "standard",
        "d_in": width,
        "d_sae": LATENTS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
    }
    metadata = {**described, "sae_lens_version": "6.54.0"}
    whole = {**config, **described} if old else {**config, "metadata": metadata}
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(whole))
    generator = torch.Generator().manual_seed(0)
    weights = {
        "W_enc": torch.randn(width, LATENTS, generator=generator) * width**-0.5,
        "W_dec": torch.randn(LATENTS, width, generator=generator) * LATENTS**-0.5,
        "b_enc": torch.zeros(LATENTS),
        "b_dec": torch.zeros(width),
    }
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


def snapshot(cache: Path, repository: str, revision: str) -> Path:
    """The folder of a repository's files in a hub cache, `revision` being its `main`."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    return folder / "snapshots" / revision


def write_gpt2_saes(folder: Path) -> Path:
    """The release `gpt2-small-res-jb`, as far as the target `gpt2-small` needs it."""
    hook = "blocks.4.hook_resid_pre"
    write_sae(folder / hook, hook, old=True)
    save_file({"sparsity": torch.zeros(LATENTS)}, folder / hook / "sparsity.safetensors")
    return folder


def write_gpt2_cache(cache: Path) -> None:
    """A hub cache with tiny stand-ins for all that the target `gpt2-small` is made of."""
    write_model(
        snapshot(cache, "openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e")
    )
    write_gpt2_saes(snapshot(cache, "jbloom/GPT2-Small-SAEs-Reformatted", "a" * 40))


def write_llama_scope(folder: Path, hook: str) -> None:
    """An SAE of Llama Scope, shrunk; as large as those of `tests.saes`."""
    (folder / "checkpoints").mkdir(parents=True)
    described = {
        "d_model": D,
        "d_sae": M,
        "hook_point_in": hook,
        "jump_relu_threshold": 0.1,
        "dataset_average_activation_norm": {"in": 20.0},
    }
    (folder / "hyperparams.json").write_text(json.dumps(described))
    drawn = torch.Generator().manual_seed(0)
    weights = {
        "encoder.weight": torch.randn(M, D, generator=drawn) * D**-0.5,
        "decoder.weight": torch.randn(D, M, generator=drawn) * M**-0.5,
        "encoder.bias": torch.randn(M, generator=drawn) * 0.1,
        "decoder.bias": torch.randn(D, generator=drawn) * 0.1,
    }
    halves = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(halves, folder / "checkpoints" / "final.safetensors")
