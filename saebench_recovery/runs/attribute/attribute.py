"""`saebench attribute`: through which part of the deltas a stored run's recoveries go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress
from saebench_recovery.runs.attribute.places import places
from saebench_recovery.runs.attribute.reopened import loaded, recovered, stored_run
from saebench_recovery.runs.attribute.replays import ReplayedParts, Replays
from saebench_recovery.schema import Attribution, Source, TaskAttribution
from saebench_recovery.scoring.attribution import contrasts, effect, joined

Chunk = tuple[ReplayedParts, dict[Source, Replays]]


def attribute(
    path: str | Path,
    *,
    flips: int | None = None,
    top: int = 8,
    plugins: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Attribution:
    """Split the recovering deltas of a stored run, and replay each part by itself.

    A delta is the sum of what it changes in the clamped latents, in the other latents, and outside
    of what the SAE sees. Each part is replayed from the tokens with the defense active: alone,
    left out, and at the norm of the whole delta. Beside it stand the parts of random deltas and of
    those that inject a wrong answer.

    Args:
        path: the run's folder, with its evidence.
        flips: the most of each task, in the order in which they were scored; None for all.
        top: how many of the other latents are also replayed by themselves: at each token those
            that move most.
        plugins: files to import first, of which the run names a class.
        progress: called with what is done, how much of it, and of how much in all.

    Returns:
        For each task and kind of deltas: rates with 95 % intervals over flips, Shapley values,
        lengths as shares of the delta's, and a verdict in words.

    Raises:
        UserError: no complete run with its evidence, or none with recoveries in the residual
            stream.

    Example:
        >>> found = attribute("runs/0123456789abcdef", flips=32)
        >>> for task in found.tasks:
        ...     print(task.task, task.deltas[0].verdict)
    """
    for file in plugins:
        registry.load_plugin_file(file)
    report = progress or (lambda *_: None)
    stored, plan = stored_run(Path(path))
    target = loaded(plan)
    tasks: list[TaskAttribution] = []
    skipped: list[str] = []
    for number, (task, facts) in enumerate(stored.facts.items()):
        report(f"replaying parts of {task}", number, len(stored.facts))
        chunks: list[Chunk] = []
        for part in recovered(target, plan, stored, task, flips):
            replays = ReplayedParts(part, top)
            chunks.append((replays, dict(replays.sources())))
        if chunks:
            tasks.append(_attributed(task, facts.attack, top, chunks))
        else:
            skipped.append(f"{task}: no recovery by a residual delta")
    if not tasks:
        raise UserError(f"{str(path)!r} has nothing to attribute; {'; '.join(skipped)}")
    return Attribution(identity=stored.result.identity, tasks=tuple(tasks), skipped=tuple(skipped))


def _attributed(task: str, attack: str, top: int, chunks: Sequence[Chunk]) -> TaskAttribution:
    records = [record for replays, _ in chunks for record in replays.recovered.records]
    clusters = [record.cluster or record.id for record in records]
    verdicts = {
        source: joined([found[source].verdicts for _, found in chunks]) for source in chunks[0][1]
    }
    deltas = tuple(
        effect(source, of, joined([found[source].lengths for _, found in chunks]), clusters)
        for source, of in verdicts.items()
    )
    return TaskAttribution(
        task=task,
        attack=attack,
        flips=len(records),
        top=top,
        deltas=deltas,
        contrasts=tuple(contrasts(verdicts["recovering"], verdicts["wrong-target"], clusters)),
        places=tuple(places([(replays, found["recovering"].split) for replays, found in chunks])),
    )
