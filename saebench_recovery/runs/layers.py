"""A run at every hook point that may be perturbed, and the flips that none of them recovers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress, silent
from saebench_recovery.base.sites import Site
from saebench_recovery.protocols.apply import fill
from saebench_recovery.results.task_run import TaskRun, read_run
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.runs.run import carried_out
from saebench_recovery.runs.shared import Shared
from saebench_recovery.schema import LayerPoint, LayerSweep
from saebench_recovery.scoring.measures import verdict
from saebench_recovery.scoring.statistics import rate
from saebench_recovery.spec import RunSpec


def sweep_layer(
    spec: RunSpec, out: Path, progress: Progress | None = None
) -> tuple[LayerSweep, ...]:
    """Carry out a spec once for each task and perturbed hook point; complete runs are read.

    Perturbed are the input of the first block and the output of each, under `reclamp` up to the
    last defended hook point, behind which a perturbation would pass the defense by.

    Raises:
        UserError: the attack perturbs no hook point of one's choice, or see `runs.execute`.
    """
    cls = registry.plugin_class("attack", spec.attack)
    if "sites" not in cls.Config.model_fields or "sites" in spec.attack_config:
        raise UserError(
            f"sweep-layer sets -A sites of the attack: {spec.attack!r} has no such setting, or it "
            "was given; use an attack on the residual stream, such as orthogonal, without it"
        )
    shared, told = Shared(), progress or silent
    whole = check_names(fill(spec))
    return tuple(
        sweep
        for task in whole.tasks
        for sweep in _of_task(spec.model_copy(update={"tasks": (task,)}), out, shared, told)
    )


def _of_task(spec: RunSpec, out: Path, shared: Shared, progress: Progress) -> Iterator[LayerSweep]:
    """A sweep for each row of a task: one that has several targets has a row of each."""
    runs: dict[str, list[tuple[str, TaskRun]]] = {}
    for site in _sites(spec, shared, progress):
        config = {**spec.attack_config, "sites": [site]}
        plan = Plan.of(check_names(fill(spec.model_copy(update={"attack_config": config}))))
        carried_out(plan, out, shared, progress=progress)
        for label, of_label in read_run(out / plan.identity)[1].items():
            runs.setdefault(label, []).append((site, of_label))
    for label, points in runs.items():
        yield _added_up(label, points)


def _sites(spec: RunSpec, shared: Shared, progress: Progress) -> list[str]:
    """Hook points in the order of the forward pass."""
    plan = Plan.of(check_names(fill(spec)))
    depth = shared.target(plan).depth()
    every = [Site(0, "hook_resid_pre"), *(Site(i, "hook_resid_post") for i in range(depth))]
    if spec.threat_model == "reclamp":
        defended = [
            site
            for label in plan.matchups
            for site in shared.undisturbed(plan, label, progress).defense.latents
        ]
        every = [site for site in every if site <= max(defended)]
    return [str(site) for site in every]


def _added_up(label: str, points: list[tuple[str, TaskRun]]) -> LayerSweep:
    flips = points[0][1].flips
    recovered = {
        id for _, run in points for id, record in run.flips.items() if verdict(record, "recovery")
    }
    row = points[0][1].row
    return LayerSweep(
        task=label,
        defense=row.defense,
        attack=row.attack,
        points=tuple(
            LayerPoint(
                site=site,
                identity=run.run.identity,
                recovery=run.row.recovery,
                wrong_target=run.row.controls.wrong_target,
                median_norm_recovers=run.row.curve.median_norm_recovers,
                median_norm_injects=run.row.curve.median_norm_injects,
            )
            for site, run in points
        ),
        withstands=rate(
            [id not in recovered for id in flips], [record.cluster for record in flips.values()]
        ),
    )
