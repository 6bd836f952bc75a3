"""All checks of a fitted defense and its task, before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Output
from saebench_recovery.model.forward import forward
from saebench_recovery.model.hooks import Edit, kinds
from saebench_recovery.schema import Finding
from saebench_recovery.scoring.check.alarm_function import AlarmCheck
from saebench_recovery.scoring.check.catalogue import blocked, refusal
from saebench_recovery.scoring.check.defense_edits import Edits
from saebench_recovery.scoring.check.defense_function import FunctionCheck
from saebench_recovery.scoring.check.defense_gradient import GradientCheck
from saebench_recovery.scoring.check.sampled import judged, residuals, spread
from saebench_recovery.scoring.check.task_examples import Splits, check_examples
from saebench_recovery.scoring.check.task_outputs import check_outputs
from saebench_recovery.scoring.passes import CHUNK
from saebench_recovery.scoring.setting import Setting

FEW = 4  # prompts on which a defense is called in many ways
TOKENS = 6  # the last of each, at which gradients are compared
JUDGED, GENERATED = 16, 4  # prompts whose outputs are judged; generation costs more


@dataclass(frozen=True)
class Preflight:
    """What was found, and which of the declared latents [S] of each site a constraint holds.

    `defended` are the defended model's outputs on the examples, `passes.CHUNK` at a time, where
    the checks came to them: nobody has to run it again.
    """

    findings: tuple[Finding, ...]
    edited: Mapping[Site, Tensor]
    defended: Sequence[Output] | None
    _functions: Sequence[FunctionCheck | AlarmCheck]

    def afterwards(self) -> tuple[Finding, ...]:
        """Asked once more when the run is over: a defense that counts calls has changed by then."""
        return tuple(found for check in self._functions for found in check.afterwards())


def preflight(setting: Setting, examples: Sequence[Example]) -> Preflight:
    """Check a fitted defense and its task on evaluation examples.

    Faults of the plugins are findings; nothing is raised for them.
    """
    found: list[Finding] = []
    functions: list[FunctionCheck | AlarmCheck] = []
    defended: Sequence[Output] | None = None
    edited = {
        site: torch.ones(len(latents.features), dtype=torch.bool)
        for site, latents in setting.defense.latents.items()
    }
    try:
        found += check_defense(setting, examples, functions)
        if all(one.level != "error" for one in found):
            edits, defended = written(setting, examples)
            edited = {site: one.edited_S for site, one in edits.items()}
            found += [f for one in edits.values() for f in one.findings(setting.defense)]
        found += check_examples(setting.target, setting.task, _splits(setting, examples))
        if all(one.level != "error" for one in found):
            count = GENERATED if setting.task.new_tokens else JUDGED
            found += check_outputs(setting, spread(examples, count))
    except UserError as error:
        found.append(refusal(error))
    return Preflight(tuple(found), edited, defended, functions)


def check_defense(
    setting: Setting, examples: Sequence[Example], functions: list[FunctionCheck | AlarmCheck]
) -> list[Finding]:
    """Whether it is a function, and honest about its gradient; fills `functions`."""
    few = spread(examples, FEW)
    sites, defense = sorted(setting.defense.latents), setting.defense
    entering, _ = residuals(setting.bare, few, sites)
    functions += [FunctionCheck(defense, site, entering[site]) for site in sites]
    if defense.false_alarms is not None:
        before = setting.spec.threat_model == "reclamp"
        functions += [AlarmCheck(defense, s, entering[s], entering=before) for s in sites]
    found = [f for check in functions for f in check.findings()]
    if blocked(found):
        return found  # what follows builds on it
    for site in sites:
        tokens = min(TOKENS, *map(len, entering[site]))
        resid_ETD = torch.stack([resid_TD[-tokens:] for resid_TD in entering[site]])
        pull_ETD = _pull(setting, few, site)[:, -tokens:]
        found += GradientCheck(setting.defense, site, resid_ETD, pull_ETD).findings()
    return found


def written(
    setting: Setting, examples: Sequence[Example]
) -> tuple[dict[Site, Edits], list[Output] | None]:
    """What the defense does to every evaluation prompt, at each of its sites.

    Also the outputs, unless the task pools before the last of them and runs no further.
    """
    latents, pool = setting.defense.latents, setting.task.pool
    seen: dict[Site, list[list[Tensor]]] = {site: [[], []] for site in latents}
    pooled_before = pool is not None and pool < max(latents)
    defended: list[Output] = []
    for begin in range(0, len(examples), CHUNK):
        part = examples[begin : begin + CHUNK]
        if pooled_before:
            both = residuals(setting.active, part, sorted(latents))
        else:
            output, both = judged(setting, part)
            defended.append(output)
        for site, parts in seen.items():
            for kept, of_prompt in zip(parts, both, strict=True):
                kept += of_prompt[site]
    edits = {
        site: Edits(site, latents[site], *(torch.cat(kept) for kept in parts))
        for site, parts in seen.items()
    }
    return edits, None if pooled_before else defended


def _splits(setting: Setting, examples: Sequence[Example]) -> Splits:
    selection, retain = (
        setting.task.examples(setting.target, split) for split in ("selection", "retain")
    )
    return {"selection": selection, "evaluation": examples, "retain": retain}


def _pull(setting: Setting, examples: Sequence[Example], site: Site) -> Tensor:
    """The objective's gradient [E, T, D] with respect to what leaves the defense at a site.

    Prompts are aligned at their last token.
    """
    target = setting.target
    batch = replace(target.batch(examples), apart=True)
    edits: dict[Site, Edit] = dict(setting.active.edits(batch))
    own, leaving = edits[site], []

    def watch(resid_RQD: Tensor) -> Tensor:
        leaving.append(own(resid_RQD).detach().requires_grad_())
        return leaving[0]

    watch.kind = tuple(kinds({site: own}))  # type: ignore[attr-defined]  # what its own edit costs
    with torch.enable_grad():
        output = forward(target, batch, {**edits, site: watch}, pool=setting.task.pool)
        objective = setting.task.objective(output).sum()
        (grad_RQD,) = torch.autograd.grad(objective, leaving)
    each = grad_RQD.float()[:: batch.rows_per_example]
    length = min(len(example.prompt) for example in examples)
    ends = batch.readout_E.tolist()
    return torch.stack(
        [row[end + 1 - length : end + 1] for row, end in zip(each, ends, strict=True)]
    )
