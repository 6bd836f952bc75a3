"""One run from names to a stored result: check everything, resume what is there, do the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_recovery import registry
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.protocols.apply import fill
from saebench_recovery.runs.provenance import provenance
from saebench_recovery.results.store import RunFolder, check_writable
from saebench_recovery.schema import RunResult, Texts
from saebench_recovery.base.progress import Progress
from saebench_recovery.base.settings import validate
from saebench_recovery.spec import Limits, RunSpec

if TYPE_CHECKING:
    from saebench_recovery.interfaces import Attack, Defense, Task


def run(
    target: str = "organism",
    defense: str | type[Defense] = "clamp",
    attack: str | type[Attack] = "orthogonal",
    tasks: Sequence[str | type[Task]] | None = None,
    *,
    defense_config: Mapping[str, Any] | None = None,
    attack_config: Mapping[str, Any] | None = None,
    task_config: Mapping[str, Any] | None = None,
    threat_model: str = "reclamp",
    budget: float = 0.5,
    budget_unit: str = "relative",
    limits: Limits | None = None,
    seed: int = 0,
    limit: int | None = None,
    dtype: str = "auto",
    force_sae: bool = False,
    flops: float | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    out: str | Path = "runs",
    force: bool = False,
    keep_text: bool = False,
    plugins: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> RunResult:
    """Attack one defense of a target and return the scored, stored result.

    Without `tasks`, every task that the target has. `budget` is the largest norm of a
    perturbation, relative to the defended residual's or absolute. `limit` caps the evaluation
    examples per task, `flops` what the search may spend on each flip at each budget, `plugins`
    are files to import first, and `batch_size=None` chooses one. `dtype` is the model's, and with
    `force_sae` an SAE's word on which model and hook point it belongs to does not count. The
    result stands in `<out>/<identity>/result.json`; a complete one is read, a partial one
    continued, unless `force`. With `keep_text`, what a generating task asked and was told is
    written to `texts.jsonl` there.

    Raises:
        UserError: bad input, or a model that computes NaN; finished tasks stay on disk.
    """
    for file in plugins:
        registry.load_plugin_file(file)
    spec = {
        "target": target,
        "defense": registry.registered_name("defense", defense),
        "attack": registry.registered_name("attack", attack),
        "tasks": [registry.registered_name("task", task) for task in tasks or ()],
        "defense_config": dict(defense_config or {}),
        "attack_config": dict(attack_config or {}),
        "task_config": dict(task_config or {}),
        "threat_model": threat_model,
        "budget": budget,
        "budget_unit": budget_unit,
        "limits": limits or Limits(),
        "seed": seed,
        "limit": limit,
        "dtype": dtype,
        "force_sae": force_sae,
        "flops": flops,
        "device": device,
        "batch_size": batch_size,
    }
    checked = validate(RunSpec, spec, "run")
    return execute(checked, Path(out), force=force, keep_text=keep_text, progress=progress)


def execute(
    spec: RunSpec,
    out: Path,
    *,
    force: bool = False,
    keep_text: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Do what a spec says; see `run`. What it leaves open is filled in from its protocol, if any.

    Raises:
        UserError: see `run`.
    """
    spec = check_names(fill(spec))
    check_writable(out)
    plan = Plan.of(spec)
    folder = RunFolder(out, plan.identity)
    earlier = None if force else folder.load()
    texts: list[Texts] | None = [] if keep_text else None
    if earlier is not None and keep_text:
        texts = folder.finished_texts({row.task for row in earlier.rows})
    if earlier is not None and earlier.status == "complete":
        return earlier
    return _compute(plan, folder, earlier, texts, progress or (lambda what, done, total: None))


def _compute(
    plan: Plan,
    folder: RunFolder,
    earlier: RunResult | None,
    texts: list[Texts] | None,
    progress: Progress,
) -> RunResult:
    """Run the tasks that are still missing, storing the whole after each of them.

    Texts are added to `texts` and stored, unless it is None.
    """
    progress("loading", 0, 1)
    from saebench_recovery.scoring.evaluate import evaluate
    from saebench_recovery.targets.loading import load_target

    started = time.monotonic() - (earlier.provenance.seconds if earlier else 0)
    rows = {row.task: row for row in earlier.rows} if earlier else {}
    examples, perturbations = folder.finished(rows) if earlier else ([], {})
    said = plan.spec
    target = load_target(said.target, said.device, dtype=said.dtype, force_sae=said.force_sae)
    # Before the first task is scored: data that cannot be read must not cost finished work.
    made_by = provenance(target, [trio.task for trio in plan.trios.values()])
    read = earlier.provenance.commits if earlier else {}
    result = earlier
    for name, trio in plan.trios.items():
        if name in rows:
            continue
        scored = evaluate(target, trio.task, trio.defense, trio.attack, plan.spec, progress)
        if not rows:
            folder.discard()
        rows[name] = scored.row
        examples += scored.examples
        perturbations |= {f"{name}/{key}": values for key, values in scored.perturbations.items()}
        if texts is not None:
            texts += scored.texts
        result = RunResult(
            status="complete" if len(rows) == len(plan.trios) else "partial",
            identity=plan.identity,
            spec=plan.record(),
            provenance=made_by.model_copy(
                update={
                    "seconds": time.monotonic() - started,
                    "commits": {**read, **target.commits},
                }
            ),
            rows=tuple(rows[task] for task in plan.trios if task in rows),
        )
        folder.save(result, examples, perturbations, texts)
    assert result is not None  # a plan has at least one task
    return result
