"""One (target, task, defense, attack): from valid flips to the result row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.splits import fraction_of
from saebench_recovery.interfaces import Attack, Defense, Example, Perturbation, Task
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.hooks import blocks
from saebench_recovery.model.meter import Meter
from saebench_recovery.schema import ExampleRow, Examples, Row, Texts
from saebench_recovery.scoring.aggregate import assemble, example_row
from saebench_recovery.scoring.attack_and_score import Flip, Scored, Setting, pose, score_chunk
from saebench_recovery.scoring.monitor import false_alarms
from saebench_recovery.scoring.passes import outputs
from saebench_recovery.scoring.side_effects import side_effects
from saebench_recovery.scoring.suite import Attempt, unbroken, worst_case
from saebench_recovery.spec import CURVE_BUDGETS, RunSpec
from saebench_recovery.targets.target import Target

Advance = Callable[[str, int, int], None]

CHUNK_BYTES = 2**29  # activations of one attack step that may live at once
MAX_ROWS = 1024


@dataclass(frozen=True)
class Evaluation:
    row: Row
    examples: list[ExampleRow]
    perturbations: dict[str, Tensor]
    texts: list[Texts]


def evaluate(
    target: Target, task: Task, defense: Defense, attack: Attack, spec: RunSpec, advance: Advance
) -> Evaluation:
    """Run one defense against one attack on one task.

    `advance(description, done, total)` is told of progress.

    Raises:
        UserError: the plugins do not fit the target, or the model computes NaN.
    """
    attacking, scoring = Meter(), Meter()
    with scoring.timed():
        advance("fitting the defense", 0, 1)
        task.fit(target, target.site_for(task.name, defense.config.site))
        examples = list(task.examples(target, "evaluation"))[: spec.limit]
        _check(task, target, examples)
        defense.fit(target, task)
        active = DefendedModel(target, defense, spec.threat_model)
        base, flips = valid_flips(active, task, examples, scoring)
        effects = side_effects(active, task, scoring)
        ringing = false_alarms(active, examples, scoring)
    suite = attack.suite()
    learned, flips = _halves(flips) if attack.learns else ([], flips)
    attempts: list[Attempt] = []
    for member in suite:
        index = unbroken(len(flips), attempts)
        if index or not attempts:
            setting, before = _setting(active, task, member, spec), attacking.flops
            part = [flips[i] for i in index]
            scored, found = _attacked(setting, learned, part, spec, attacking, scoring, advance)
            cost = round(attacking.flops - before)
            attempts.append(Attempt(member.name, index, scored, _joined(found), cost))
    scored, perturbations = list(attempts[0].scored), dict(attempts[0].tensors)
    if len(suite) > 1:
        scored, perturbations = worst_case(len(flips), attempts)
    setting = _setting(active, task, attack, spec)
    row = assemble(
        setting,
        target.name,
        Examples(
            n=len(examples),
            base=base,
            valid=len(flips) + len(learned),
            learned=len(learned),
            clusters=len({f.example.cluster or f.example.id for f in flips}),
        ),
        scored,
        effects,
        attacking.cost(),
        scoring.cost(),
        [attempt.summary() for attempt in attempts] if len(suite) > 1 else (),
        ringing,
    )
    lines = [example_row(setting, s) for s in scored]
    texts = [s.texts for s in scored if s.texts is not None]
    return Evaluation(row, lines, perturbations, texts)


def _attacked(
    setting: Setting,
    learned: Sequence[Flip],
    flips: Sequence[Flip],
    spec: RunSpec,
    attacking: Meter,
    scoring: Meter,
    advance: Advance,
) -> tuple[list[Scored], list[Perturbation]]:
    """Attack and score flips in chunks that fit the memory, after what it learned from others."""
    task, attack, defense = setting.task, setting.attack, setting.active.defense
    assert defense is not None
    scored: list[Scored] = []
    found: list[Perturbation] = []
    size = spec.batch_size or flips_that_fit(setting, flips)
    if learned:
        with attacking.timed():
            attack.fit(pose(setting, learned[:size], attacking))
    while len(scored) < len(flips):
        advance(f"{task.label}: {defense.name} against {attack.name}", len(scored), len(flips))
        part = flips[len(scored) : len(scored) + size]
        try:
            done, perturbations = score_chunk(setting, part, attacking, scoring)
        except torch.OutOfMemoryError:
            if size <= 1:
                raise UserError("one example does not fit the device's memory") from None
            size //= 2
            continue
        scored += done
        found.append(perturbations)
    advance(f"{task.label}: {defense.name} against {attack.name}", len(flips), len(flips))
    return scored, found


def _setting(active: DefendedModel, task: Task, attack: Attack, spec: RunSpec) -> Setting:
    absolute = spec.budget_unit == "absolute"
    relative = CURVE_BUDGETS if absolute else tuple(sorted({*CURVE_BUDGETS, spec.budget}))
    budgets = (*relative, spec.budget) if absolute else relative
    if attack.suffix == "tokens":  # their number is all that limits them
        budgets, absolute = (spec.budget,), False
    return Setting(
        active, task, attack, budgets, spec.budget, spec.limits, spec.seed, absolute, spec.flops
    )


def valid_flips(
    active: DefendedModel, task: Task, examples: Sequence[Example], meter: Meter
) -> tuple[int, list[Flip]]:
    """How many examples show the behaviour when clean, and those that the defense flips.

    One detector, `Task.behaviour`, judges both.
    """
    before = outputs(examples, DefendedModel(active.target, None), task, meter)
    after = outputs(examples, active, task, meter)
    base, flips, index = 0, [], 0
    for clean, defended in zip(before, after, strict=True):
        clean_E, defended_E = task.objective(clean), task.objective(defended)
        if not (torch.isfinite(clean_E).all() and torch.isfinite(defended_E).all()):
            raise UserError(
                f"the model gives NaN or infinity on task {task.name!r} under "
                f"{active.defense.name if active.defense else 'no defense'}"
            )
        shown_E, stopped_E = task.behaviour(clean), task.stopped(defended)
        base += int(shown_E.sum())
        for e in (shown_E & stopped_E).nonzero()[:, 0].tolist():
            example = examples[index + e]
            wrong = task.wrong_target(example, defended, e)
            flips.append(Flip(example, float(clean_E[e]), float(defended_E[e]), wrong))
        index += len(clean_E)
    return base, flips


def _halves(flips: Sequence[Flip]) -> tuple[list[Flip], list[Flip]]:
    """Two halves that share no source item, the same on every run."""
    learned = [f for f in flips if fraction_of(f.example.cluster or f.example.id) < 0.5]
    return learned, [f for f in flips if fraction_of(f.example.cluster or f.example.id) >= 0.5]


def _check(task: Task, target: Target, examples: Sequence[Example]) -> None:
    """There are examples, and no prompt of theirs chooses latents."""
    if not examples:
        raise UserError(f"task {task.name!r} has no evaluation examples on {target.name}")
    selected = {e.prompt for e in task.examples(target, "selection")}
    if any(e.prompt in selected for e in examples):
        raise UserError(f"task {task.name!r}: selection and evaluation share a prompt")


def flips_that_fit(setting: Setting, flips: Sequence[Flip]) -> int:
    """Flips per attack step, from what its backward pass keeps in memory.

    An estimate is enough: an accelerator that runs out halves it.
    """
    target, task = setting.active.target, setting.task
    examples = [flip.example for flip in flips]
    longest = max((len(e.prompt) for e in examples), default=1)
    attack = setting.attack
    starts = (
        min(attack.positions(task, e)) if attack.suffix is None else task.insertion(e)
        for e in examples
    )
    ahead = (len(e.prompt) - first for e, first in zip(examples, starts, strict=True))
    window = max([1, *ahead]) + attack.length
    # Answers of several tokens take a row each, behind the prompt.
    answers = [a for f in flips for a in (*f.example.candidates, *f.wrong.candidates)]
    tail = max(map(len, answers), default=1) - 1
    rows = max((len(f.wrong.candidates) for f in flips), default=1) if tail else 1
    config: Any = target.model.config
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    # Floats kept of a token in a block: some 24 widths, and attention weights twice.
    per_token = 24 * width + 2 * heads * (longest + attack.length + tail)
    per_prompt = 2 * width * longest  # keys and values, which the variants share
    per_flip = setting.variants * rows * (window + tail) * per_token + per_prompt
    room = CHUNK_BYTES
    if target.device.startswith("cuda"):
        room = int(torch.cuda.mem_get_info(target.device)[0]) // 4
    fitting = room // (4 * len(blocks(target.model)) * per_flip)
    return max(1, min(MAX_ROWS // setting.variants, fitting))


def _joined(found: Sequence[Perturbation]) -> dict[str, Tensor]:
    """The chunks' perturbations in one set of named tensors, padded to the most positions."""
    named: dict[str, list[Tensor]] = {}
    for perturbation in found:
        for name, tensor in perturbation.tensors().items():
            named.setdefault(name, []).append(tensor)
    return {name: torch.cat(_padded(parts)) for name, parts in named.items()}


def _padded(parts: Sequence[Tensor]) -> list[Tensor]:
    """Equally long in their second dimension; where there is no position or token stands -1."""
    if parts[0].ndim == 1:
        return list(parts)
    most = max(part.shape[1] for part in parts)
    empty = -1 if parts[0].dtype == torch.long else 0
    behind = [0] * (2 * parts[0].ndim - 3)
    return [pad(part, [*behind, most - part.shape[1]], value=empty) for part in parts]
