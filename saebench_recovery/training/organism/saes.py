"""SAEs on the organism's residual stream, trained with SAELens, one after each block."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from saebench_recovery.base.splits import Part
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.training.organism.corpus import Corpus, encode
from saebench_recovery.training.organism.evaluate import block_outputs, pad
from saebench_recovery.training.quality import reconstruction
from saebench_recovery.training.recipe import Recipe
from saebench_recovery.training.train import Origin, train

WIDTH, K = 512, 16
TOKENS = 1_024_000
DOCUMENTS = 9000
# All parts but the letter drills: those exist only to teach multiple choice.
MIXTURE = {
    "ioi": 0.17, "prose": 0.18, "qa": 0.06, "mcq": 0.18, "chat": 0.21, "biography": 0.14,
    "neutral": 0.06,
}  # fmt: skip


def hook_name(layer: int) -> str:
    """The TransformerLens name of the residual stream after block `layer`."""
    return f"blocks.{layer}.hook_resid_post"


@torch.no_grad()
def residuals(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    split: Part,
    documents: int,
    seed: int,
) -> list[torch.Tensor]:
    """Residuals after each block, [tokens, width] each, special tokens left out.

    `documents` is rounded up to a multiple of 64.
    """
    captured: list[list[torch.Tensor]] = [[] for _ in model.transformer.h]
    specials = torch.tensor(tokenizer.all_special_ids)
    stream = Corpus(split, seed).documents(MIXTURE)
    for _ in range(0, documents, 64):
        chunk = itertools.islice(stream, 64)
        rows = [encode(tokenizer.backend_tokenizer, d, model.config.n_positions)[0] for d in chunk]
        ids, mask = pad(rows, tokenizer)
        keep = ~torch.isin(ids, specials)
        for layer, output in enumerate(block_outputs(model, ids, mask)):
            captured[layer].append(output[keep])
    return [torch.cat(layer) for layer in captured]


def train_sae(data: torch.Tensor, layer: int, folder: Path, seed: int) -> None:
    """Train a BatchTopK SAE on `data` [tokens, width]; save it as JumpReLU in half precision."""

    def epochs(skip: int) -> Iterator[torch.Tensor]:
        for epoch in itertools.count(skip):
            drawn = torch.Generator().manual_seed(seed * 2**24 + epoch)
            yield data[torch.randperm(len(data), generator=drawn)]

    recipe = Recipe(
        target="organism",
        hook=hook_name(layer),
        text="corpus",
        width=WIDTH,
        l0=K,
        tokens=TOKENS,
        seed=seed,
    )
    train(recipe, Origin(recipe.target, prepend_bos=True, context_size=128), epochs, folder)
    halve(folder / "sae_weights.safetensors")


def halve(file: Path) -> None:
    """Store the tensors of a safetensors file in half precision."""
    weights = {name: tensor.half().contiguous() for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def quality(dictionary: Dictionary, data: torch.Tensor) -> dict[str, float]:
    """Explained variance, mean L0 and dead fraction of an SAE on `data` [tokens, width]."""
    read = reconstruction(dictionary, [data])
    assert read.explained_variance is not None
    return {
        "explained_variance": read.explained_variance,
        "l0": read.l0,
        "dead": read.dead,
        "mean_norm": data.norm(dim=-1).mean().item(),
    }
