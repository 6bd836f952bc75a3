"""Training an SAE with SAELens on blocks of residuals, in a folder from which it can go on.

The optimiser, losses and revival of dead latents are SAELens'; the loop is here so that it reports
its progress and goes on after it was cut off: a checkpoint holds whole blocks only, and blocks have
seeds of their own, so the weights are those of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.training.recipe import BATCH, Recipe

if TYPE_CHECKING:
    from saebench_recovery.base.progress import Progress

Blocks = Callable[[int], Iterator[Tensor]]
"""Endless blocks of residuals [N, D] in random order, without the first so many."""

LEARNING_RATE = 3e-3  # falls to zero over the last third; runs are short
WARM_UP = 50  # steps
THRESHOLD_RATE = 0.05  # of BatchTopK's running threshold, which short runs need to settle soon
DEAD_AFTER = 200  # steps without being on
CHECKPOINT_SECONDS = 60.0
CHECKPOINT, WEIGHTS = "checkpoint", "sae.safetensors"


@dataclass(frozen=True)
class Origin:
    """What an SAE's metadata say about where it was trained."""

    model_name: str
    prepend_bos: bool
    context_size: int


def train(
    recipe: Recipe,
    origin: Origin,
    blocks: Blocks,
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Train an SAE and save it in a folder as SAELens saves one for inference.

    A run that was cut off goes on from its last checkpoint in the folder. BatchTopK is saved as
    the JumpReLU that it stands for.

    Raises:
        UserError: the folder cannot be written.
    """
    done = _resumed_blocks(folder)
    stream = blocks(done)
    block_ND = next(stream)
    trainer = _trainer(recipe, origin, block_ND)
    if done:
        _restore(trainer, folder / f"{CHECKPOINT}-{done}")
    saved = time.monotonic()
    while True:
        starts = range(0, len(block_ND) - BATCH + 1, BATCH)
        for start in starts[: recipe.steps - trainer.n_training_steps]:
            trainer.step(block_ND[start : start + BATCH])
            trainer.n_training_steps += 1
            if progress is not None:
                step = trainer.n_training_steps
                progress(f"training, step {step} of {recipe.steps}", step, recipe.steps)
        if trainer.n_training_steps == recipe.steps:
            break
        done += 1
        if time.monotonic() - saved >= CHECKPOINT_SECONDS:
            _save_checkpoint(trainer, folder, done)
            saved = time.monotonic()
        block_ND = next(stream)
    trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.set_final_sae_metadata()
    _save(trainer.sae, folder)


def _trainer(recipe: Recipe, origin: Origin, block_ND: Tensor) -> Any:
    """A SAELens trainer before its first step, scaled and centred by some residuals."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    D, device = block_ND.shape[1], str(block_ND.device)
    metadata = SAEMetadata(hook_name=recipe.hook, exclude_special_tokens=True, **asdict(origin))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        sae = _untrained(recipe, d_in=D, device=device, metadata=metadata)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=recipe.steps * BATCH,
            train_batch_size_samples=BATCH,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE,
            lr_warm_up_steps=min(WARM_UP, recipe.steps // 4),
            lr_decay_steps=recipe.steps // 3,
            device=device,
            dead_feature_window=DEAD_AFTER,
            feature_sampling_window=10**9,
        ),
        sae=sae,
        data_provider=iter(()),  # its own loop, which is not used, would read from it
    )
    # Scaled to a mean norm of sqrt(D), with the bias at the mean, SAEs of all models learn alike.
    scale = math.sqrt(D) / float(block_ND.norm(dim=-1).mean())
    trainer.activation_scaler.scaling_factor = scale
    sae.b_dec.data = block_ND.mean(0) * scale
    return trainer


def _untrained(recipe: Recipe, **common: Any) -> Any:
    import sae_lens

    common |= {"d_sae": recipe.width, "normalize_activations": "expected_average_only_in"}
    match recipe.architecture:
        case "batchtopk":
            config = sae_lens.BatchTopKTrainingSAEConfig(
                k=recipe.l0, topk_threshold_lr=THRESHOLD_RATE, **common
            )
            return sae_lens.BatchTopKTrainingSAE(config)
        case "topk":
            return sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(k=recipe.l0, **common))
        case "jumprelu":
            config = sae_lens.JumpReLUTrainingSAEConfig(
                jumprelu_sparsity_loss_mode="quadratic",
                target_l0=recipe.l0,
                jumprelu_ste_to_input=True,
                l0_warm_up_steps=recipe.steps // 4,
                **common,
            )
            return sae_lens.JumpReLUTrainingSAE(config)


def _resumed_blocks(folder: Path) -> int:
    """Blocks that the folder's latest checkpoint holds, 0 without one."""
    found = folder.glob(f"{CHECKPOINT}-*")
    return max((int(path.name.rpartition("-")[2]) for path in found), default=0)


@contextmanager
def _made_whole(part: Path) -> Iterator[None]:
    """Make a folder that is renamed when it is whole; one that cannot be written is removed.

    Raises:
        UserError: it cannot be written; what was saved before stays.
    """
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield
    # Of a full disk each library says something else.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        said = str(error).partition("\n")[0]
        raise UserError(
            f"nothing can be saved in {part.parent}: {said}; if its disk is full, free some space "
            "and repeat the command, which goes on from its last checkpoint"
        ) from error


def _save_checkpoint(trainer: Any, folder: Path, blocks: int) -> None:
    """Write a checkpoint under a name that it gets only when it is whole; remove older ones."""
    unfinished = folder / "unfinished"
    with _made_whole(unfinished):
        trainer.save_trainer_state(unfinished)
        save_file(trainer.sae.state_dict(), unfinished / WEIGHTS)
        os.replace(unfinished, folder / f"{CHECKPOINT}-{blocks}")
    for path in folder.glob(f"{CHECKPOINT}-*"):
        if path.name != f"{CHECKPOINT}-{blocks}":
            shutil.rmtree(path)


def _restore(trainer: Any, checkpoint: Path) -> None:
    trainer.sae.load_state_dict(load_file(checkpoint / WEIGHTS, device=trainer.cfg.device))
    trainer.load_trainer_state(checkpoint)


def _save(sae: Any, folder: Path) -> None:
    """Save for inference; cfg.json, which makes the folder an SAE, comes last."""
    finished = folder / "finished"
    with _made_whole(finished):
        sae.save_inference_model(finished)
        cfg = json.loads((finished / "cfg.json").read_text("utf-8"))
        # The machine's device is no property of the SAE.
        (finished / "cfg.json").write_text(json.dumps(cfg | {"device": "cpu"}, indent=2) + "\n")
    for file in sorted(finished.iterdir(), reverse=True):
        os.replace(file, folder / file.name)
    finished.rmdir()
    for path in folder.glob(f"{CHECKPOINT}-*"):
        shutil.rmtree(path)
