"""One run from names to a stored result: check everything, resume what is there, do the rest."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from saebench_recovery import registry
from saebench_recovery.base import named_code
from saebench_recovery.base.catalogue import Kind
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress, silent
from saebench_recovery.base.settings import validate
from saebench_recovery.protocols.apply import fill
from saebench_recovery.results.chunks import RunJournal
from saebench_recovery.results.folder import RunFolder
from saebench_recovery.results.in_order import in_order
from saebench_recovery.results.store import (
    RESULT,
    STATE,
    check_writable,
    read_state,
    write_model,
)
from saebench_recovery.runs.plan import Matchup, Plan, check_names
from saebench_recovery.runs.shared import Shared
from saebench_recovery.runs.sharing import ALONE, Sharing
from saebench_recovery.runs.tasks import SideBySide
from saebench_recovery.schema import Facts, RunResult, RunState
from saebench_recovery.spec import OPTIONS, RunSpec
from saebench_recovery.targets.presets import PARTS

POSITIONAL = ("target", "defense", "attack", "tasks")
PLUGINS: dict[str, Kind] = {"defense": "defense", "attack": "attack", "tasks": "task"}


def run(
    *names: Any,
    out: str | Path = "runs",
    force: bool = False,
    keep_text: bool = False,
    plugins: Sequence[str | Path] = (),
    progress: Progress | None = None,
    **options: Any,
) -> RunResult:
    """Attack one defense of a target and return the scored, stored result.

    The result stands in `<out>/<identity>/`. A complete run that is repeated is read from there,
    and an interrupted one goes on where it was stopped.

    Args:
        names: target, defense, attack and tasks, in this order, without their names.
        out: folder for results.
        force: repeat a run that is complete.
        keep_text: write what a generating task asked and was told to `texts.jsonl`.
        plugins: files to import first, with a defense, an attack or a task of your own.
        progress: called with what is done, how much of it, and of how much in all.
        options: the fields of a `RunSpec`; None leaves one open. A defense, an attack or a task
            may be its name or a registered class; without tasks, all that the target has are run.

    Returns:
        A row for each task, or each of its targets. Rates and means have 95 % intervals; norms
        are in the unit of the budget, drift is relative, KL and cross-entropy are in nats a token.

    Raises:
        UserError: bad input, or a model that computes NaN; finished chunks stay on disk.

    Example:
        >>> result = run(defense="clamp", attack="orthogonal", tasks=["ioi"], limit=32)
        >>> for row in result.rows:
        ...     print(row.task, row.examples.valid, row.recovery.rate, row.under_attack.rate)
    """
    spec = requested(names, options, plugins)
    return execute(spec, Path(out), force=force, keep_text=keep_text, progress=progress)


def requested(
    names: Sequence[Any], options: Mapping[str, Any], plugins: Sequence[str | Path]
) -> RunSpec:
    """The spec of a Python call, whose plugin files are imported first; see `run`.

    Raises:
        UserError: bad input.
    """
    for file in plugins:
        registry.load_plugin_file(file)
    given = _by_name(names) | {n: v for n, v in options.items() if v is not None}
    for name, kind in PLUGINS.items():
        if name in given:
            given[name] = _named(kind, given[name])
    if isinstance(given.get("tasks"), str):
        given["tasks"] = [given["tasks"]]
    spec = validate(RunSpec, given, "run")
    allow_named(spec)
    return spec


def _by_name(names: Sequence[Any]) -> dict[str, Any]:
    if len(names) > len(POSITIONAL):
        raise UserError(f"run: only {', '.join(POSITIONAL)} may be given without their names")
    return {n: v for n, v in zip(POSITIONAL, names, strict=False) if v is not None}


def _named(kind: Kind, given: Any) -> Any:
    """Classes by their names; what is neither class nor name is left to the validation."""
    if isinstance(given, list | tuple):
        return [_named(kind, one) for one in given]
    return registry.registered_name(kind, given) if isinstance(given, type) else given


def _signature() -> inspect.Signature:
    """That of `run` with the fields of `RunSpec`, as `help` and editors show it."""
    own = inspect.signature(run)
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD
            if name in POSITIONAL
            else inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=field.annotation,
        )
        for name, field in RunSpec.model_fields.items()
    ]
    verb = [p for p in own.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return own.replace(parameters=[*fields, *verb])


def _with_options(documented: str) -> str:
    """The docstring of `run`, and what each field of a `RunSpec` means."""
    own = [f"    {'.'.join(one.path)}: {one.field.description}" for one in OPTIONS]
    return "\n".join([inspect.cleandoc(documented), "", "Options:", *own])


cast(Any, run).__signature__ = _signature()
run.__doc__ = _with_options(run.__doc__ or "")


def allow_named(spec: RunSpec) -> None:
    """Let the judge and the packaged model be imported that a user, and not a file, names."""
    named_code.allow(spec.target.partition(PARTS)[0])
    judge = spec.task_config.get("judge")
    if isinstance(judge, str):
        named_code.allow(judge)


def execute(
    spec: RunSpec,
    out: Path,
    *,
    force: bool = False,
    keep_text: bool = False,
    progress: Progress | None = None,
    sharing: Sharing = ALONE,
) -> RunResult:
    """Do what a spec says; see `run`. What it leaves open is filled in from its protocol, if any.

    A spec that a file holds may be given too: code that it names is imported only after
    `allow_named` was called with the same names. Tasks are divided among processes as `sharing`
    says; that changes figures by rounding at most, where threads differ.

    Raises:
        UserError: see `run`.
        KeyboardInterrupt: with a line that says what is kept.
    """
    plan = Plan.of(check_names(fill(spec)))
    return carried_out(
        plan,
        out,
        Shared(),
        force=force,
        keep_text=keep_text,
        progress=progress,
        sharing=sharing,
    )


def carried_out(
    plan: Plan,
    out: Path,
    shared: Shared,
    *,
    force: bool = False,
    keep_text: bool = False,
    progress: Progress | None = None,
    sharing: Sharing = ALONE,
) -> RunResult:
    """The same for a plan, which takes from `shared` what runs before it have loaded or computed.

    Raises:
        UserError, KeyboardInterrupt: see `execute`.
    """
    folder = RunFolder(out, plan.identity)
    earlier = None if force else folder.load(with_texts=keep_text)
    if earlier is not None:
        return earlier
    check_writable(out)
    _ = plan.matchups  # before the folder: settings that do not fit leave nothing
    with folder.writing(anew=force) as place:
        journal = RunJournal(place, keep_texts=keep_text)
        told = progress or silent
        work = _Work(plan, place, journal, shared, sharing, told)
        try:
            return work.finish()
        except KeyboardInterrupt as stop:
            kept = sum(chunk.records for chunk in journal.chunks)
            line = f"{kept} flips are kept in {str(place)!r}; the same command goes on from there"
            if force or not kept:
                line = "nothing new is kept" + ("; an earlier result is as it was" if force else "")
            raise type(stop)(line) from None


@dataclass(frozen=True)
class _Work:
    """A plan that is carried out in a folder, from wherever an earlier process was stopped."""

    plan: Plan
    place: Path
    journal: RunJournal
    shared: Shared
    sharing: Sharing
    progress: Progress

    @property
    def matchups(self) -> Mapping[str, Matchup]:
        return self.plan.matchups

    def finish(self) -> RunResult:
        """Evaluate the tasks that are missing, then add up the rows."""
        from saebench_recovery.scoring.aggregate import aggregate  # a complete run needs no scipy

        state = read_state(self.place)
        facts = {found.task: found for found in state.facts} if state else {}
        if state is None or facts.keys() != self.matchups.keys():
            state = self._evaluated(state, facts)
        facts = {found.task: found for found in state.facts}
        journal = in_order(self.journal, list(self.matchups))
        result = RunResult(
            status="complete",
            identity=self.plan.identity,
            spec=state.spec,
            provenance=state.provenance,
            rows=tuple(aggregate(facts[t], journal.records(t)) for t in self.matchups),
        )
        write_model(self.place / STATE, state.model_copy(update={"status": "complete"}))
        write_model(self.place / RESULT, result)
        return result

    def _evaluated(self, earlier: RunState | None, facts: Mapping[str, Facts]) -> RunState:
        """The state with the facts of every task, stored after each of them."""
        self.progress("loading", 0, 1)
        missing = [task for task in self.matchups if task not in facts]
        work = SideBySide(self.plan, missing, self.sharing, self.journal, self.progress)
        return self._scored(work, earlier, dict(facts))

    def _scored(
        self, work: SideBySide, earlier: RunState | None, facts: dict[str, Facts]
    ) -> RunState:
        spent = earlier.provenance.seconds if earlier else 0
        started = time.monotonic() - spent
        target = self.shared.target(self.plan)
        # Before the first task is scored: data that cannot be read must not cost finished work.
        made_by = self.shared.provenance(self.plan)
        commits = dict(earlier.provenance.commits) if earlier else {}

        def state() -> RunState:
            made = {"commits": commits, "seconds": time.monotonic() - started}
            return RunState(
                status="running",
                identity=self.plan.identity,
                spec=self.plan.record(),
                provenance=made_by.model_copy(update=made),
                facts=tuple(facts[task] for task in self.matchups if task in facts),
            )

        write_model(self.place / STATE, state())
        for found in work.each(self.shared):
            facts[found.task] = found.facts
            commits |= {**target.commits, **found.commits}
            write_model(self.place / STATE, state())
        return state()
