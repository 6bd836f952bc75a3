"""What all chunks of a row have in common, and the valid flips that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Defense, Example, Plugin, Task
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.perturbations.drift import DriftRule
from saebench_recovery.perturbations.kinds import KINDS, inapplicable
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.perturbations.space import Lessons
from saebench_recovery.sae.latents import Latents
from saebench_recovery.schema import Spread
from saebench_recovery.scoring.integrity import disarmed, fingerprint, others_at_hand
from saebench_recovery.scoring.lessons import lessons
from saebench_recovery.scoring.monitor import FalseAlarms
from saebench_recovery.scoring.retain import Retain
from saebench_recovery.selection.spread import spread
from saebench_recovery.selection.typical import typical_preactivation
from saebench_recovery.spec import CURVE_BUDGETS, RunSpec
from saebench_recovery.targets.target import Target

P = TypeVar("P", bound=Plugin)


@dataclass(frozen=True)
class Flip:
    """A valid flip: the clean model shows the behaviour, the defended model does not."""

    example: Example
    clean: float  # the objective of the clean model
    defended: float
    wrong: Example  # the same, asking for an answer that neither gives


@dataclass(frozen=True)
class Setting:
    """One attack on one fitted defense, on one task of a target.

    `held` are the latents that an attack has to keep in place; by default all declared ones.
    A member of a suite is attacked at the headline budget alone: norms of several kinds make no
    curve.
    """

    target: Target
    task: Task
    defense: Defense
    attack: Attack
    spec: RunSpec
    held: Mapping[Site, Latents] | None = None
    in_suite: bool = False

    @cached_property
    def members(self) -> list[Setting]:
        """One for each attack that this one stands for; of a suite, for each that applies here.

        Raises:
            UserError: two members have one name, or none applies.
        """
        if not self.mixed:
            return [self]
        every = [replace(self, attack=attack, in_suite=True) for attack in self.attack.suite()]
        names = [member.attack.name for member in every]
        if len(set(names)) < len(names):
            raise UserError(f"{self.attack.title}: two members of a suite have one name")
        reasons = [inapplicable(member.attack.space, self.task) for member in every]
        found = [one for one, reason in zip(every, reasons, strict=True) if reason is None]
        if not found:
            raise UserError(f"{self.attack.title}: none of its members applies; {reasons[0]}")
        for member in found:  # what was measured once holds for all
            shared = ("active", "bare", "drift_rule", "judges_before", "false_alarms")
            vars(member).update({name: getattr(self, name) for name in shared})
        return found

    @property
    def watched(self) -> bool:
        """Whether code of others takes part: the package alone replaces and changes nothing."""
        return others_at_hand(self.task, self.defense, self.attack)

    @cached_property
    def judges_before(self) -> dict[str, int]:
        """What figures depend on, as it was before the attack was asked anything; if watched."""
        return fingerprint(self.task, self.defense) if self.watched or disarmed() else {}

    @cached_property
    def false_alarms(self) -> FalseAlarms | None:
        """Counted before any attack, of all evaluation examples, by whoever poses the setting."""
        return None

    @cached_property
    def active(self) -> DefendedModel:
        return DefendedModel(self.target, self.defense, self.spec.threat_model, self.held)

    @cached_property
    def bare(self) -> DefendedModel:
        """The model without the defense."""
        return DefendedModel(self.target, None)

    def handed_out(self) -> Setting:
        """The same with copies of task and defense, for what a search may reach."""
        copied = replace(self, task=_shallow(self.task), defense=_shallow(self.defense))
        # What was measured once holds for the copies; the limits are the search's own to write to.
        shared = {"spreads": self.spreads, "lessons": self.lessons}
        vars(copied).update(drift_rule=deepcopy(self.drift_rule), **shared)
        return copied

    def at_headline(self) -> Setting:
        """The same at the headline budget alone."""
        alone = replace(self, in_suite=True)
        measured = ("spreads", "drift_rule", "lessons", "active", "bare")
        vars(alone).update({name: getattr(self, name) for name in measured})
        return alone

    def measure(self) -> None:
        """Measure spreads, drift rule and lessons now: no chunk pays for what serves all."""
        _ = self.spreads, self.drift_rule, self.lessons

    @property
    def has_norm(self) -> bool:
        """Whether a budget limits what the attack returns."""
        return KINDS[self.attack.space][0].has_norm

    @property
    def limited(self) -> bool:
        """Whether a recovery is held to the limits on drift.

        Changed weights give a residual stream of their own, in which the latents' drift from the
        unchanged model's does not say what the defense still does.
        """
        return KINDS[self.attack.space][0].limited

    @cached_property
    def lessons(self) -> Lessons:
        """What an attack on weights may learn from; nothing for others."""
        if not KINDS[self.attack.space][0].learns:
            return (), ()
        return lessons(self.target, self.task, self.active)

    @cached_property
    def retain(self) -> Retain:
        """The retain examples, and which of them the clean model gets right."""
        return Retain.of(self.target, self.task, self.bare)

    @cached_property
    def retained(self) -> dict[str, float | None]:
        """The share of the known ones that are kept under changes of weights, by their content.

        One change serves all flips, so its share is found once for all chunks.
        """
        return {}

    @cached_property
    def spreads(self) -> dict[str, Spread]:
        """Per site that the attack perturbs, of the task's selection prompts."""
        return {str(site): self.spread(site) for site in self.measured_sites}

    @property
    def measured_sites(self) -> list[Site]:
        """Those whose spread the attack's budgets are measured in."""
        return KINDS[self.attack.space][0].sites(self.attack, self.defense)

    def spread(self, site: Site) -> Spread:
        """The spread of a site on the task's selection prompts."""
        prompts = [e.prompt for e in self.task.examples(self.target, "selection")]
        return spread(self.target, site, prompts)

    @cached_property
    def drift_rule(self) -> DriftRule:
        """The run's limits, and how strongly the defended latents are active where they are."""
        prompts = [e.prompt for e in self.task.examples(self.target, "selection")]
        typical = {
            site: typical_preactivation(self.target, latents, prompts)
            for site, latents in self.active.latents.items()
        }
        return DriftRule(self.spec.limits, typical)

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """Those that are searched at, ascending, the headline budget among them.

        An attack that shortens searches at the headline, and up to the curve's largest for the
        smallest norm.
        """
        headline = self.spec.budget
        if self.in_suite or not self.has_norm:
            return (headline,)
        return (headline, self._curve[-1]) if self.attack.shortens else self._curve

    @property
    def head(self) -> int:
        """Where the headline budget stands."""
        return self.budgets.index(self.spec.budget)

    @property
    def curve_budgets(self) -> tuple[float, ...]:
        """The budgets that make the curve.

        None where nothing has a norm, nor for a suite, whose norms are of several kinds.
        """
        return () if not self.has_norm or self.mixed else self._curve

    @property
    def _curve(self) -> tuple[float, ...]:
        """Shares of the headline budget where that is absolute."""
        headline = self.spec.budget
        if self.spec.budget_unit == "absolute":
            return tuple(sorted({share * headline for share in CURVE_BUDGETS}))
        return tuple(sorted({*CURVE_BUDGETS, headline}))

    @property
    def mixed(self) -> bool:
        """Whether the attack stands for several."""
        return self.attack.suite() != [self.attack]

    @property
    def rounded(self) -> bool:
        """Whether the model computes in less than float32."""
        return self.target.dtype != torch.float32

    @property
    def searches_rounded(self) -> bool:
        """Whether ascents begin in bfloat16, on a model that computes in float32."""
        asked = self.spec.search_dtype
        on_gpu = self.target.device.startswith("cuda")
        return not self.rounded and (asked == "bfloat16" or (asked == "auto" and on_gpu))

    @property
    def variants(self) -> int:
        """Problem rows per flip: every budget, towards the right and towards a wrong answer."""
        return 2 * len(self.budgets)

    def acts_elsewhere(self, examples: Sequence[Example]) -> bool:
        """Whether residuals are perturbed at positions or hook points of the attack's own choice.

        More places are another threat than what the task and the defense say by themselves, and
        what is ranked together has to face the same one.
        """
        first = [min(self.defense.latents)]

        def own(attack: Attack) -> bool:
            return attack.sites(self.defense) != first or any(
                sorted(attack.positions(self.task, e)) != sorted(self.task.positions(e))
                for e in examples
            )

        residual = [one.attack for one in self.members if one.attack.space == Residual.kind]
        return any(map(own, residual))

    def positions(self, examples: list[Example]) -> Tensor:
        """Token positions [E, P] that a residual attack perturbs, and where drift is measured."""
        each = [torch.tensor(self.attack.positions(self.task, e)) for e in examples]
        return pad_sequence(each, batch_first=True, padding_value=-1)


def _shallow(plugin: P) -> P:
    """A copy that the plugin has no say in: one of its own making could do something else."""
    copied: P = object.__new__(type(plugin))
    vars(copied).update(vars(plugin))
    return copied
