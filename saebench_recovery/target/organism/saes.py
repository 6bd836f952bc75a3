"""SAEs on the organism's residual stream, trained with SAELens, one after each block."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from saebench_recovery.splits import Split
from saebench_recovery.target.organism.corpus import Corpus, encode
from saebench_recovery.target.organism.evaluate import block_outputs, pad

WIDTH, K = 512, 16
STEPS, BATCH = 1000, 1024
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
    split: Split,
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
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=data.shape[1],
            d_sae=WIDTH,
            k=K,
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(
                model_name="organism",
                hook_name=hook_name(layer),
                prepend_bos=True,
                context_size=128,
                exclude_special_tokens=True,
            ),
        )
    )
    # SAELens scales its inputs to a mean norm of sqrt(width); start the bias at the scaled mean.
    scale = data.shape[1] ** 0.5 / data.norm(dim=-1).mean()
    sae.b_dec.data = data.mean(0) * scale

    def shuffled() -> Iterator[torch.Tensor]:
        while True:
            order = torch.randperm(len(data))
            for start in range(0, len(data), BATCH):
                yield data[order[start : start + BATCH]]

    config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-3,
        lr_end=1e-4,
        lr_warm_up_steps=50,
        lr_decay_steps=STEPS // 3,
        dead_feature_window=200,
        feature_sampling_window=10**9,
        n_batches_for_norm_estimate=50,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trained = SAETrainer(cfg=config, sae=sae, data_provider=shuffled()).fit()
    trained.save_inference_model(folder)
    halve(folder / "sae_weights.safetensors")
    # The build's device and paths are no property of the SAE.
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"device": "cpu"}, indent=2) + "\n")


def halve(file: Path) -> None:
    """Store the tensors of a safetensors file in half precision."""
    weights = {name: tensor.half().contiguous() for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def quality(weights: Mapping[str, torch.Tensor], data: torch.Tensor) -> dict[str, float]:
    """Explained variance, mean L0 and dead fraction of a JumpReLU SAE on `data` [tokens, width]."""
    w = {name: tensor.float() for name, tensor in weights.items()}
    pre = (data - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    latents = pre.relu() * (pre > w["threshold"])
    residue = data - (latents @ w["W_dec"] + w["b_dec"])
    variance = (data - data.mean(0)).square().sum()
    active = latents > 0
    return {
        "explained_variance": 1 - (residue.square().sum() / variance).item(),
        "l0": active.sum(-1).float().mean().item(),
        "dead": 1 - active.any(0).float().mean().item(),
        "mean_norm": data.norm(dim=-1).mean().item(),
    }
