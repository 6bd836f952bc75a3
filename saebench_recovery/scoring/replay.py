"""Replay of what an attack found, from the tokens and under the active defense."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench_recovery import schema
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Output, Perturbation, Task
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.perturbations.drift import (
    Reading,
    drift,
    scopes,
    tightest_limit,
    within_limits,
)
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring.monitor import rings
from saebench_recovery.scoring.passes import perplexity, whole_pass
from saebench_recovery.spec import Limits


class Replay:
    """The headline perturbations from the tokens, beside the clean and the defended passes.

    A prompt with a suffix is read where the prompt without it is: what was put in is left out, and
    its last token stands for the last one. `positions_EP` are the perturbed ones there.
    """

    def __init__(
        self, problem: Problem, found: Perturbation, positions_EP: Tensor, limits: Limits
    ) -> None:
        active, task, meter = problem.active, problem.task, problem.meter
        examples = problem.examples
        assert active.defense is not None
        latents = active.defense.latents
        watch = tuple(latents)
        laid = active.target.batch(examples)
        bare = DefendedModel(active.target, None)
        clean_trace, defended_trace, trace = Trace(), Trace(), Trace()
        clean = whole_pass(bare, task, laid, meter, trace=clean_trace, watch=watch)
        defended = whole_pass(active, task, laid, meter, trace=defended_trace, distribution=False)
        perturbed, delta = found.applied(examples)
        longer = active.target.batch(perturbed)
        output: Output = whole_pass(active, task, longer, meter, delta, trace)
        self.rung_E = rings(active, longer, trace)
        column_EQ = _columns(task, laid, longer)
        for site in watch:
            clean_trace.z[site] = latents[site].read(clean_trace.after[site])
            clean_trace.p[site] = latents[site].preactivation(clean_trace.after[site])
        self._said = task.label, (clean, defended, output)
        self._decode = active.target.tokenizer.decode
        self.objective_E = task.objective(output)
        self.recovered_E = task.behaviour(output)
        self.fidelity_E = task.fidelity(output, clean)
        self.base_like_E = task.base_like(output, clean, limits.fidelity)
        self.figures = task.figures(output, clean)
        if task.new_tokens:
            self.figures["perplexity"] = perplexity(bare, output, meter)
        C = laid.rows_per_example
        self.drift = drift(
            _reading(defended_trace, watch, C),
            _reading(trace, watch, C).at(column_EQ),
            _reading(clean_trace, watch, C),
            latents,
            scopes(laid, positions_EP.to(column_EQ.device)),
        )
        self.tightest_E = tightest_limit(self.drift)
        self.within_E = within_limits(self.drift, limits)
        switched = [d.metrics["reactivated_fraction"].nan_to_num() > 0 for d in self.drift.values()]
        self.switched_on_E = torch.stack(switched).any(0)

    def texts(self, e: int) -> schema.Texts | None:
        """What example e asked and what was said, if its task generates."""
        task, outputs = self._said
        example = outputs[0].examples[e]
        said = [output.texts[e] for output in outputs if output.texts is not None]
        if not said:
            return None
        prompt = self._decode(example.prompt, skip_special_tokens=False)
        names = zip(("clean", "defended", "recovered"), said, strict=True)
        return schema.Texts(task=task, id=example.id, prompt=prompt, **dict(names))


def _columns(task: Task, laid: Batch, longer: Batch) -> Tensor:
    """Column [E, Q] of each token of a prompt in the batch where a suffix may stand before it."""
    column_Q = torch.arange(laid.ids_RQ.shape[1], device=laid.ids_RQ.device)
    at_E = torch.tensor([task.insertion(e) for e in laid.examples], device=column_Q.device)
    moved_EQ = column_Q >= torch.minimum(at_E, laid.readout_E)[:, None]
    return column_Q + moved_EQ * (longer.readout_E - laid.readout_E)[:, None]


def _reading(trace: Trace, sites: tuple[Site, ...], rows_per_example: int) -> Reading:
    """Readings of each example's first row."""
    z = {site: trace.z[site][::rows_per_example] for site in sites}
    return Reading(z, {site: trace.p[site][::rows_per_example] for site in sites})
