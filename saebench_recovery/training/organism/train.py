"""Training of the organism in stages, each with a stop rule measured on held-out prompts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.progress import Progress
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from saebench_recovery.training.organism.corpus import Batch, Corpus, batches
from saebench_recovery.training.organism.evaluate import ioi_accuracy, mcq_accuracy

CONTEXT = 128
ROWS, ROW_LENGTH = 16, 128
CHECK_EVERY = 50

Metric = Callable[[GPT2LMHeadModel, PreTrainedTokenizerFast], float]


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    It ends once `metric` (on the selection split) has reached `goal`, after `min_steps` at the
    earliest; the learning rate decays over the last `decay` of `max_steps`. Without reaching its
    goal in time the build fails.
    """

    name: str
    mixture: dict[str, float]
    learning_rate: float
    max_steps: int
    metric: Metric
    goal: float
    min_steps: int = 0
    decay: int = 0


# Multiple choice is the one hard behaviour. From scratch, and with almost everything about letters,
# it came after about 950 steps; two trials that began with names were still at chance when stopped
# (after 330 and 800 steps). Names need a concentrated stage of their own after it.
STAGES = (
    Stage(
        name="letters",
        mixture={"listing": 0.30, "lookup": 0.25, "mcq": 0.20, "qa": 0.10, "prose": 0.15},
        learning_rate=2.0e-3,
        max_steps=2000,
        metric=lambda model, tokenizer: mcq_accuracy(model, tokenizer, "selection", 256),
        goal=0.93,
    ),
    Stage(
        name="names",
        mixture={
            "ioi": 0.45, "listing": 0.05, "lookup": 0.05, "mcq": 0.20, "qa": 0.10, "prose": 0.15,
        },
        learning_rate=1.5e-3,
        max_steps=1500,
        metric=lambda model, tokenizer: ioi_accuracy(model, tokenizer, "selection", 256),
        goal=0.95,
    ),
    Stage(
        name="full",
        mixture={
            "ioi": 0.13, "prose": 0.15, "qa": 0.09, "mcq": 0.25, "lookup": 0.05, "listing": 0.04,
            "chat": 0.15, "biography": 0.09, "neutral": 0.05,
        },
        learning_rate=1.2e-3,
        max_steps=1400,
        metric=lambda model, tokenizer: min(
            mcq_accuracy(model, tokenizer, "selection", 256),
            ioi_accuracy(model, tokenizer, "selection", 256),
        ),
        goal=0.95,
        min_steps=1400,
        decay=700,
    ),
)  # fmt: skip


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> GPT2LMHeadModel:
    """An untrained organism: 4 layers, width 128, about 1 M parameters."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        activation_function="gelu_pytorch_tanh",
        initializer_range=0.06,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    model = GPT2LMHeadModel(config)
    # Options are found by their place, so places start out distinct and ordered. (Not tested apart
    # from the wide initialization.)
    angles = torch.arange(CONTEXT)[:, None] / 10_000 ** torch.arange(0, 1, 2 / config.n_embd)
    waves = torch.cat([angles.sin(), angles.cos()], -1)
    model.transformer.wpe.weight.data = config.initializer_range * waves
    return model


def loss_of(model: GPT2LMHeadModel, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy of the next token (scalar, nats)."""
    logits = model(batch.ids, position_ids=batch.positions, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def train_stage(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    seed: int,
    progress: Progress,
) -> int:
    """Train `model` in place until the stage's stop rule holds; returns the number of steps."""
    stream = batches(
        Corpus("train", seed=seed),
        stage.mixture,
        tokenizer.backend_tokenizer,
        rows=ROWS,
        length=ROW_LENGTH,
        max_length=CONTEXT,
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )
    bar = progress.add_task(f"stage {stage.name}", total=stage.max_steps)
    for step in range(1, stage.max_steps + 1):
        warm_up = min(1.0, step / 100)
        left = (stage.max_steps - step + 1) / stage.decay if stage.decay else 1.0
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * warm_up * max(0.02, min(1.0, left))
        loss = loss_of(model, next(stream))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.advance(bar)
        if step % CHECK_EVERY == 0:
            score = stage.metric(model.eval(), tokenizer)
            model.train()
            progress.console.print(
                f"{stage.name} {step}: loss {loss.item():.3f}, held-out score {score:.3f}"
            )
            if not math.isfinite(loss.item()):
                raise RuntimeError(f"stage {stage.name} diverged at step {step}")
            if score >= stage.goal and step >= stage.min_steps:
                progress.update(bar, total=step)
                return step
    raise RuntimeError(f"stage {stage.name} missed its goal of {stage.goal}; try another seed")
