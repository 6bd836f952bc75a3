"""Rule 1: a task judges outputs alike wherever they come from, and by what its objective says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saebench_recovery.interfaces import Example, Output, Task
from saebench_recovery.schema import Finding
from saebench_recovery.schema.finding import Level
from saebench_recovery.scoring.check.catalogue import finding
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.scoring.setting import Setting

AGREES, MOSTLY_AGREES = 0.95, 0.5  # shares of outputs
ALONE = 4  # outputs that are judged one by one, too
PARTS = (0.25, 0.5)  # of the way from a defended output to the clean one
STEPS = 16  # of that way, on which the behaviour begins to be shown
SOMETIMES_SHOWN, MOSTLY_SHOWN = 0.1, 0.5  # of valid flips


def check_outputs(setting: Setting, examples: Sequence[Example]) -> Iterator[Finding]:
    """What is wrong with the verdicts on real outputs, clean and defended."""
    task, batch = setting.task, setting.target.batch(examples)
    clean, defended = (whole_pass(model, task, batch) for model in (setting.bare, setting.active))
    between = [] if task.new_tokens else [_between(defended, clean, part) for part in PARTS]
    for output in (clean, defended, *between):
        how = next(
            (how for how, again in _again(task, output) if _differs(task, output, again)), ""
        )
        if how:
            yield finding("two-detectors", f"{task.title} judges the same output otherwise {how}")
            break
    outputs = (clean, defended)
    shown, stopped = (
        torch.cat([verdict(output) for output in outputs])
        for verdict in (task.behaviour, task.stopped)
    )
    both = int((shown & stopped).sum())
    if both:
        words = f"{task.title} takes {both} of {len(shown)} outputs for shown and for stopped"
        yield finding("shown-and-stopped", words)
    if not task.new_tokens:
        positive = torch.cat([task.objective(o) for o in outputs]) > 0
        if disagrees := list(_agreement(task, shown, positive)):
            yield from disagrees
            between = []  # nothing more is said of the objective
    yield from _ways(task, clean, defended, between)
    yield from _wrong_targets(setting, examples, clean, defended)


def _agreement(task: Task, shown: Tensor, positive: Tensor) -> Iterator[Finding]:
    share = float((shown == positive).float().mean())
    if share < AGREES:
        words = f"{task.title}: the objective's sign is the behaviour on {share:.0%} of outputs"
        level: Level = "invalid" if share < MOSTLY_AGREES else "caution"
        yield finding("objective-disagrees", words, level)


def _ways(
    task: Task, clean: Output, defended: Output, between: Sequence[Output]
) -> Iterator[Finding]:
    """Whether what a task measures changes on the way from a stopped output to a shown one."""
    flips_E = task.behaviour(clean) & task.stopped(defended)
    count = int(flips_E.sum())
    start_E = task.objective(defended)
    fallen = [int((flips_E & (task.objective(part) <= start_E)).sum()) for part in between]
    if 2 * max(fallen, default=0) > count:
        words = f"{task.title}: the objective does not rise from stopped outputs to shown ones"
        yield finding("objective-disagrees", f"{words}, on {max(fallen)} of {count}")
    near_E = task.fidelity(defended, clean) >= task.fidelity(clean, clean)
    if 2 * int((flips_E & near_E).sum()) > count:
        yield finding("fidelity-blind", f"{task.title} finds stopped outputs like the clean ones")


def _wrong_targets(
    setting: Setting, examples: Sequence[Example], clean: Output, defended: Output
) -> Iterator[Finding]:
    """Whether what stands for a wrong answer is one: the defended model must not give it."""
    task = setting.task
    flips_E = task.behaviour(clean) & task.stopped(defended)
    flips = flips_E.nonzero()[:, 0].tolist()
    if not flips:
        return
    wrong = [task.wrong_target(examples[e], defended, e) for e in flips]
    if task.new_tokens:
        texts = tuple((defended.texts or ())[e] for e in flips)
        asked = Output(tuple(wrong), defended.scores_EC[flips], texts=texts)
    else:
        asked = whole_pass(setting.active, task, setting.target.batch(wrong))
        if task.pool is None:  # what is pooled says itself which answer it is near
            yield from _unequal(task, _rows(clean, flips), _rows(defended, flips), wrong)
    share = float(task.behaviour(asked).float().mean())
    if share > SOMETIMES_SHOWN:
        words = f"{task.title}: the defended model already gives {share:.0%} of the wrong targets"
        level: Level = "invalid" if share > MOSTLY_SHOWN else "note"
        yield finding("wrong-target-shown", words, level)


def _unequal(
    task: Task, clean: Output, defended: Output, wrong: Sequence[Example]
) -> Iterator[Finding]:
    """Whether a wrong answer has to score more, or less, than the right one to count as given.

    The scores of outputs on the way are judged as the right answer's, and then as the wrong one's.
    """
    # As many candidates as there are scores, where the wrong one is none of them.
    named = tuple(
        other.with_candidates(*other.candidates[: len(example.candidates)])
        for example, other in zip(clean.examples, wrong, strict=True)
    )
    harder_E = torch.zeros(len(named), device=clean.scores_EC.device)
    for step in range(STEPS + 1):
        output = _between(defended, clean, step / STEPS)
        right_E, wrong_E = (task.behaviour(o) for o in (output, replace(output, examples=named)))
        harder_E += right_E.float() - wrong_E.float()
    net = float(harder_E.sign().sum())
    if abs(net) > SOMETIMES_SHOWN * len(named):
        level: Level = "invalid" if abs(net) > MOSTLY_SHOWN * len(named) else "caution"
        more = "more" if net > 0 else "less"
        words = f"{task.title} asks {more} of a wrong answer than of the right one"
        yield finding("unequal-answers", f"{words}, by {abs(net):.0f} of {len(named)} flips", level)


def _again(task: Task, output: Output) -> Iterator[tuple[str, Output]]:
    """The same output as the harness passes it elsewhere, with fields that the task does not read.

    Searches and controls ask for no distribution, and where texts are judged for no scores.
    """
    E = len(output.examples)
    yield "when asked again", output
    yield "without log-probabilities", replace(output, logprobs_EV=None)
    if output.logprobs_EV is None:
        flat_EV = output.scores_EC.new_zeros(E, 8).log_softmax(-1)
        yield "with log-probabilities", replace(output, logprobs_EV=flat_EV)
    if task.pool is None:
        pooled_ED = output.scores_EC.new_zeros(E, 1)
        yield "with a pooled residual", replace(output, pooled_ED=pooled_ED)
    if task.new_tokens:
        yield "without scores", replace(output, scores_EC=output.scores_EC[:, :0])
    else:
        yield "with texts", replace(output, texts=("",) * E)
    named = tuple(replace(e, id=f"another/{e.id}", cluster="") for e in output.examples)
    yield "under other ids", replace(output, examples=named)
    grown = output.scores_EC.clone().requires_grad_()
    yield "with gradients", replace(output, scores_EC=grown)


def _between(defended: Output, clean: Output, part: float) -> Output:
    """Part of the way, where perturbed outputs lie: a lenient detector shows there."""

    def moved(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        return None if one is None or other is None else one + part * (other - one)

    scores_EC = moved(defended.scores_EC, clean.scores_EC)
    assert scores_EC is not None
    return replace(
        clean,
        scores_EC=scores_EC,
        logprobs_EV=moved(defended.logprobs_EV, clean.logprobs_EV),
        pooled_ED=moved(defended.pooled_ED, clean.pooled_ED),
    )


def _differs(task: Task, output: Output, again: Output) -> bool:
    """Whether verdicts differ, on all outputs together or on the first ones alone."""
    for verdict in (task.behaviour, task.stopped):
        wanted_E = verdict(output)
        alone = [verdict(_rows(again, [e])) for e in range(len(wanted_E))[:ALONE]]
        same = torch.equal(torch.cat(alone), wanted_E[:ALONE])
        if not (same and torch.equal(verdict(again), wanted_E)):
            return True
    return False


def _rows(output: Output, rows: Sequence[int]) -> Output:
    def part(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[list(rows)]

    return Output(
        tuple(output.examples[e] for e in rows),
        output.scores_EC[list(rows)],
        part(output.logprobs_EV),
        part(output.pooled_ED),
        output.texts and tuple(output.texts[e] for e in rows),
    )
