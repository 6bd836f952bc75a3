"""One valid flip, replayed by the reference engine: each fact of its record, found again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Output, Perturbation, ResidualDelta
from saebench_recovery.model.meter import Meter
from saebench_recovery.model.plain import Conditions, Pass, teacher_forced
from saebench_recovery.model.plain_drift import PlainDrift, drift_of
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.runs.verify.passes import RememberedPasses
from saebench_recovery.schema import Record
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.reach import reaches
from saebench_recovery.scoring.setting import Flip, Setting


@dataclass(frozen=True)
class Replayed:
    """What one perturbation does: what the task is shown, and what it is asked for."""

    perturbed: Example
    conditions: Conditions
    output: Output
    objective: float
    behaviour: bool


@dataclass(frozen=True, eq=False)
class ReplayedFlip:
    """A flip under its stored perturbations, one of each part of the evidence."""

    plain: RememberedPasses
    setting: Setting
    record: Record
    example: Example
    parts: Mapping[str, Perturbation]
    retained: Callable[[Perturbation], float | None]
    _replayed: dict[tuple[int, bool], tuple[Perturbation, Replayed]] = field(default_factory=dict)

    @cached_property
    def clean(self) -> Replayed:
        """Without the defense."""
        return self._shown(self.example, Conditions())

    @cached_property
    def defended(self) -> Replayed:
        return self._shown(self.example, self.defense_alone)

    @cached_property
    def defense_alone(self) -> Conditions:
        return Conditions(self.setting.defense)

    @cached_property
    def wrong(self) -> Example:
        """The same example asking for the wrong answer."""
        return self.setting.task.wrong_target(self.example, self.defended.output, 0)

    @cached_property
    def within_reach(self) -> bool:
        """Whether a wrong answer could be injected at all."""
        return reaches(self.setting, self.example, self.wrong)

    @cached_property
    def headline(self) -> Replayed:
        return self.under(self.parts["headline"], wrong=False)

    def under(self, perturbation: Perturbation, *, wrong: bool) -> Replayed:
        """What a perturbation does, asked for the right answer or for the wrong one."""
        key = (id(perturbation), wrong)
        if key not in self._replayed:
            found = self._perturbed(self.wrong if wrong else self.example, perturbation)
            # The perturbation is kept so that its id stays its own.
            self._replayed[key] = (perturbation, found)
        return self._replayed[key][1]

    def _perturbed(self, asked: Example, perturbation: Perturbation) -> Replayed:
        (perturbed,), delta = perturbation.applied([asked])
        conditions = Conditions(
            self.setting.defense, delta, self.setting.spec.threat_model, perturbation.weights()
        )
        return self._shown(perturbed, conditions)

    def nothing(self, *, wrong: bool) -> Replayed:
        return self._shown(self.wrong, self.defense_alone) if wrong else self.defended

    def _shown(self, example: Example, conditions: Conditions) -> Replayed:
        task = self.setting.task
        output = self.plain.output(example, conditions, pool=task.pool, new_tokens=task.new_tokens)
        with torch.no_grad():
            objective, behaviour = float(task.objective(output)), bool(task.behaviour(output))
        return Replayed(example, conditions, output, objective, behaviour)

    @cached_property
    def figures(self) -> dict[str, float]:
        """What only the task reports of the recovered output, and the perplexity of a text."""
        task, output = self.setting.task, self.headline.output
        found = {n: float(v) for n, v in task.figures(output, self.clean.output).items()}
        if output.texts is not None:
            found["perplexity"] = self._perplexity(output.texts[0])
        return found

    def _perplexity(self, text: str) -> float:
        tokens = tuple(self.plain.tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(tokens) < 2:
            return math.nan
        answered = self.headline.perturbed.with_candidates(tokens)
        return math.exp(-float(self.plain.output(answered).scores_EC))

    @cached_property
    def drift(self) -> PlainDrift:
        """Of the headline from the defense alone, at the positions that the attack declares."""
        headline, at_E = self.headline, self.parts["headline"].inserted_at_E()
        return drift_of(
            self.plain,
            self.example,
            headline.conditions,
            self.setting.attack.positions(self.setting.task, self.example),
            self.setting.drift_rule.typical,
            held=self.setting.active.latents,
            inserted=None if at_E is None else (headline.perturbed, int(at_E)),
        )

    @cached_property
    def alarmed(self) -> bool | None:
        """Whether the defense's detector rings on the headline."""
        defense, shown = self.setting.defense, self.headline
        if defense.false_alarms is None:
            return None
        seen = self._pass(shown.perturbed, shown.conditions)
        entering = self.setting.spec.threat_model == "reclamp"
        resid_TD = seen.before if entering else seen.after
        with torch.no_grad():
            rings = [
                defense.alarm(site, resid_TD[site][None], entering=entering)[0, 1:] > 0
                for site in defense.latents
            ]
        return any(bool(rings_T.any()) for rings_T in rings)

    def norm(self, perturbation: Perturbation, *, relative: bool) -> float | None:
        """The largest norm at any position, in the run's unit or relative to the residual's."""
        if not isinstance(perturbation, ResidualDelta):
            return None
        acting = perturbation.positions_EP[0] >= 0
        shares = [
            rows_PD[0].double().norm(dim=1)[acting] / unit_P[acting]
            for site, rows_PD in perturbation.values.items()
            for unit_P in [self._unit(site, perturbation, relative=relative)]
        ]
        return float(torch.cat(shares).max())

    def _unit(self, site: Site, perturbation: ResidualDelta, *, relative: bool) -> Tensor:
        """What a norm of 1 is at each position of a site."""
        setting, positions_P = self.setting, perturbation.positions_EP[0]
        unit = "relative" if relative else setting.spec.budget_unit
        if unit != "relative":
            spread = setting.spreads[str(site)].value if unit == "spread" else 1.0
            return torch.full(positions_P.shape, spread, dtype=torch.double)
        (longer,), _ = perturbation.applied([self.example])
        resid_TD = self._pass(longer, self.defense_alone, site).after[site]
        norm_P: Tensor = resid_TD.double().norm(dim=1)[positions_P.clamp_min(0)].cpu()
        return norm_P

    def _pass(self, example: Example, conditions: Conditions, *watch: Site) -> Pass:
        """A pass over the prompt, with the first answer where one may be perturbed or forced."""
        answer = example.candidates[0] if teacher_forced(example) else ()
        return self.plain.run((*example.prompt, *answer), conditions, watch)

    @cached_property
    def flip(self) -> Flip:
        return Flip(self.example, self.clean.objective, self.defended.objective, self.wrong)

    @cached_property
    def problem(self) -> Problem:
        """The search's own problem of this flip alone: its space says what it admits."""
        return posed(self.setting, [self.flip], Meter())

    @cached_property
    def unknown(self) -> Flip | None:
        """Its never-learned counterpart, if the task has one."""
        task = self.setting.task
        other = task.never_learned(self.example)
        if other is None:
            return None
        defended = self._shown(other, self.defense_alone).output
        return replace(self.flip, example=task.wrong_target(other, defended, 0), wrong=other)

    def of_unknown(self, perturbation: Perturbation | None) -> Replayed:
        """What a perturbation, or the defense alone, does to the counterpart."""
        assert self.unknown is not None
        if perturbation is None:
            return self._shown(self.unknown.example, self.defense_alone)
        return self._perturbed(self.unknown.example, perturbation)

    def alone(self, place: int, *, wrong: bool) -> Problem:
        """The problem's row at one of the budgets."""
        row = place + len(self.setting.budgets) * wrong
        return self.problem.rows(torch.tensor([row], device=self.problem.budget_N.device))


def narrowed(perturbation: Perturbation, e: int) -> Perturbation:
    """One example's perturbation as it is alone, without what others' longer ones fill up."""
    own = perturbation.rows(torch.tensor([e]))
    if not isinstance(own, ResidualDelta):
        return own
    acting = own.positions_EP[0] >= 0
    values = {site: rows_EPD[:, acting] for site, rows_EPD in own.values.items()}
    return replace(own, values=values, positions_EP=own.positions_EP[:, acting])
