"""Replay of what an attack found, from the tokens and under the active defense."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench_recovery import schema
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Output, Perturbation, ResidualDelta, Task
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import Trace
from saebench_recovery.perturbations.drift import (
    Reading,
    binds,
    drift,
    scopes,
    tightest_limit,
    within_limits,
)
from saebench_recovery.scoring.monitor import rings
from saebench_recovery.scoring.passes import perplexity, whole_pass
from saebench_recovery.scoring.setting import Setting


class Replay:
    """The headline perturbations from the tokens, beside the clean and the defended passes.

    A prompt with tokens put in is read where the prompt without them is: what was put in is left
    out, and its last token stands for the last one.
    """

    def __init__(
        self, setting: Setting, examples: list[Example], perturbation: Perturbation
    ) -> None:
        task, active, bare = setting.task, setting.active, setting.bare
        latents = active.latents
        watch = tuple(latents)
        batch = setting.target.batch(examples)
        defended_trace, trace = Trace(), Trace()
        clean = whole_pass(bare, task, batch)
        defended = whole_pass(active, task, batch, trace=defended_trace, distribution=False)
        perturbed, delta = perturbation.applied(examples)
        longer = setting.target.batch(perturbed)
        attacked = active.with_weights(perturbation.weights())
        output = whole_pass(attacked, task, longer, delta, trace)
        self.alarmed_E = rings(active, longer, trace)
        self._label, self._outputs = task.label, (clean, defended, output)
        self._decode = setting.target.tokenizer.decode
        self.defended_E = task.objective(defended)
        self.objective_E = task.objective(output)
        self.recovered_E = task.behaviour(output)
        self.fidelity_E = task.fidelity(output, clean)
        self.first_choice_E = first_choice(task, output)
        self.base_like_E = task.base_like(output, clean, setting.spec.limits.fidelity)
        self.figures = task.figures(output, clean)
        if task.new_tokens:
            self.figures["perplexity"] = perplexity(bare, output)
        C = batch.rows_per_example
        column_EQ = _columns(batch, longer, perturbation.inserted_at_E())
        positions_EP = setting.positions(examples)
        # Where a delta is, whatever the attack says of it by now; a suffix is put in, not added.
        if type(perturbation) is ResidualDelta:
            positions_EP = perturbation.positions_EP
        positions_EP = positions_EP.to(column_EQ.device)
        self.drift = drift(
            _reading(defended_trace, watch, C),
            _reading(trace, watch, C).at(column_EQ),
            latents,
            scopes(batch, positions_EP),
            setting.drift_rule.typical,
        )
        self.tightest_E = tightest_limit(self.drift)
        self.within_E = within_limits(self.drift, setting.spec.limits)
        bound_E = binds(self.drift)
        self.bound_E = bound_E if setting.limited else torch.zeros_like(bound_E)
        on = [d.metrics["reactivated_fraction"].nan_to_num() > 0 for d in self.drift.values()]
        self.reactivated_E = torch.stack(on).any(0)

    def texts(self, e: int) -> schema.Texts | None:
        """What example e asked and what was answered, if its task generates."""
        outputs: tuple[Output, ...] = self._outputs
        example = outputs[0].examples[e]
        answers = [output.texts[e] for output in outputs if output.texts is not None]
        if not answers:
            return None
        prompt = self._decode(example.prompt, skip_special_tokens=False)
        names = zip(("clean", "defended", "recovered"), answers, strict=True)
        return schema.Texts(task=self._label, id=example.id, prompt=prompt, **dict(names))


def first_choice(task: Task, output: Output) -> Tensor | None:
    """Whether the whole vocabulary's likeliest token begins the right answer, bool [E].

    None for a task that reads no next token: one that pools, or one that judges texts.
    """
    if task.new_tokens or output.logprobs_EV is None:
        return None
    likeliest_E = output.logprobs_EV.argmax(1)
    first_E = likeliest_E.new_tensor([e.candidates[0][0] for e in output.examples])
    return likeliest_E == first_E


def _columns(batch: Batch, longer: Batch, at_E: Tensor | None) -> Tensor:
    """Column [E, Q] of each token of a prompt in the batch where tokens may stand before it."""
    column_Q = torch.arange(batch.ids_RQ.shape[1], device=batch.ids_RQ.device)
    if at_E is None:
        return column_Q.expand(len(batch.readout_E), -1)
    moved_EQ = column_Q >= torch.minimum(at_E, batch.readout_E)[:, None]
    return column_Q + moved_EQ * (longer.readout_E - batch.readout_E)[:, None]


def _reading(trace: Trace, sites: tuple[Site, ...], rows_per_example: int) -> Reading:
    """Readings of each example's first row."""
    z = {site: trace.z[site][::rows_per_example] for site in sites}
    return Reading(z, {site: trace.p[site][::rows_per_example] for site in sites})
