"""What runs in one process have in common: a loaded target, defenses seen before any attack, and
what an attack found where only the monitors differ.

Only the last target is kept, of defenses those that act as the last run's on its tasks, and of
searches those of the last run, so that runs are best done in an order in which what they share
stands together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_recovery.base.progress import Progress
from saebench_recovery.runs.plan import Plan

if TYPE_CHECKING:
    from saebench_recovery.runs.same_search import KeptSearch
    from saebench_recovery.schema import Provenance
    from saebench_recovery.scoring.journal import Journal
    from saebench_recovery.scoring.undisturbed import Undisturbed
    from saebench_recovery.targets.target import Target


class Shared:
    """Loads and computes what was not there for the run before.

    Where `several` runs follow each other what an attack found is kept for the next one.
    """

    def __init__(self, *, several: bool = False) -> None:
        self._several = several
        self._target: tuple[object, Target] | None = None
        self._seen: dict[str, dict[str, dict[str, Undisturbed]]] = {}
        self._searches: dict[str, KeptSearch] = {}
        self._made_by: tuple[object, Provenance] | None = None

    def target(self, plan: Plan) -> Target:
        """The plan's target on its device, checked at the hook points that its settings name.

        Raises:
            UserError: see `load_target`.
        """
        # It imports torch and transformers, which a complete run does without.
        from saebench_recovery.scoring.integrity import others_at_hand
        from saebench_recovery.scoring.unchanged import remember
        from saebench_recovery.targets.loading import asked_at, load_target

        spec = plan.spec
        key = (spec.target, spec.device, spec.dtype, spec.force_sae)
        if self._target is None or self._target[0] != key:
            # Two models may be more than the memory holds.
            self._target, self._seen, self._searches = None, {}, {}
            loaded = load_target(
                spec.target,
                spec.device,
                dtype=spec.dtype,
                force_sae=spec.force_sae,
                asked=plan.sites,
            )
            self._target = (key, loaded)
        elif self._target[1].asked != plan.sites:
            self._target = (key, asked_at(self._target[1], plan.sites))
        if others_at_hand(*plan.plugins):
            remember(self._target[1])  # before any task is asked for its examples
        return self._target[1]

    def provenance(self, plan: Plan) -> Provenance:
        """What stands beside the plan's numbers, a hash of all its examples among it.

        Only tasks of the package's own are known to give the same examples when asked again.

        Raises:
            UserError: see `target`, or data cannot be read.
        """
        # It imports torch and transformers, which a complete run does without.
        from saebench_recovery.runs.provenance import provenance
        from saebench_recovery.scoring.integrity import others_at_hand

        target = self.target(plan)
        key = (target.asked, *map(plan.before_attack, plan.spec.tasks))
        if self._made_by is None or self._made_by[0] != key or others_at_hand(*plan.plugins):
            made_by = provenance(target, [matchup.task for matchup in plan.matchups.values()])
            self._made_by = (key, made_by)
        return self._made_by[1]

    def undisturbed(self, plan: Plan, label: str, progress: Progress) -> Undisturbed:
        """The plan's defense on one of its tasks, fitted and seen before any attack.

        Raises:
            UserError: see `scoring.undisturbed`.
        """
        from saebench_recovery.scoring.setting import Setting
        from saebench_recovery.scoring.undisturbed import undisturbed

        own = plan.matchups[label]
        acting = {task: plan.intervention(task) for task in plan.spec.tasks}
        self._seen = {key: self._seen.get(key, {}) for key in acting.values()}
        alike = self._seen[acting[own.task.name]]
        of_label = alike.setdefault(plan.before_attack(own.task.name), {})
        if label not in of_label:
            target = self.target(plan)
            setting = Setting(target, own.task, own.defense, own.attack, plan.spec)
            of_label[label] = undisturbed(setting, progress)
        return of_label[label]

    def journal(self, plan: Plan, label: str, seen: Undisturbed, journal: Journal) -> Journal:
        """The journal of the plan's attack on one of its tasks.

        In it stands what the last run's attack found, if that differs in its monitor alone.
        """
        from saebench_recovery.runs.same_search import KeptSearch

        if not self._several:
            return journal
        own = KeptSearch(plan.search(plan.matchups[label].task.name), seen, journal)
        earlier = self._searches.get(label)
        if earlier is not None:
            own.begin_with(earlier, plan)
        kept = {task: one for task, one in self._searches.items() if task in plan.matchups}
        self._searches = {**kept, label: own}
        return own
