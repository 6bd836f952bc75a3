"""A row on a board, with all that is needed to check it and to compare it example by example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.hashing import hash_text
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.results.store import STATE
from saebench_recovery.results.task_run import TaskRun, read_run
from saebench_recovery.schema import Facts, Provenance, Record, Row, Stored
from saebench_recovery.scoring.under_attack import Outcome, outcomes
from saebench_recovery.spec import RunSpec, command

SUITES = "auto-"  # how the names of the standard suites begin
HASH_SHOWN = 8  # hex digits of a source hash in a label


class Entry(Stored):
    """One row with all that is needed to check it."""

    identity: str
    command: str = Field(description="repeats the run that the row is from")
    config: dict[str, Any] = Field(description="resolved settings of task, defense and attack")
    sources: dict[str, str] = Field(
        description="hash of the source of the task, defense or attack, where it is a plugin"
    )
    standard_suite: bool = Field(description="the attack is a built-in suite with its own settings")
    limit: int | None = Field(description="of evaluation examples, as asked for")
    flops: float | None = Field(description="that the search was allowed on each flip")
    valid_flips: str = Field(description="SHA-256 of the ids of the examples that were attacked")
    provenance: Provenance
    row: Row


@dataclass(frozen=True)
class Scored:
    """An entry with what stands behind it: its flips, and each base example under attack."""

    entry: Entry
    flips: Sequence[Record]
    outcomes: Mapping[str, Outcome]

    @property
    def row(self) -> Row:
        return self.entry.row


def read_entries(folder: Path) -> list[Scored]:
    """The rows of a complete run.

    Raises:
        UserError: the run is partial or cannot be read.
    """
    result, by_task = read_run(folder)
    spec = RunSpec.stored(result.spec)
    repeat = command(spec, result.spec["plugin_files"])
    if result.status == "partial":
        raise UserError(f"{str(folder)!r} is a partial run; finish it first: {repeat}")
    return [
        Scored(
            _entry(run, spec, repeat),
            list(run.flips.values()),
            outcomes(_facts(run, folder).unsuppressed, run.flips.values()),
        )
        for run in by_task.values()
    ]


def _facts(run: TaskRun, folder: Path) -> Facts:
    if run.facts is None:
        state = (folder if folder.is_dir() else folder.parent) / STATE
        raise UserError(
            f"{str(state)!r} is missing, or says nothing of task {run.row.task!r}; repeat the run "
            "with --force"
        )
    return run.facts


def _entry(run: TaskRun, spec: RunSpec, repeat: str) -> Entry:
    sources = _sources(run)
    return Entry(
        identity=run.run.identity,
        command=repeat,
        config=run.config,
        sources=sources,
        standard_suite=(
            run.row.attack.startswith(SUITES)
            and "attack" not in sources
            and not spec.attack_config
            and spec.flops is None
        ),
        limit=spec.limit,
        flops=spec.flops,
        valid_flips=hash_text(canonical_json(list(run.flips))),
        provenance=run.run.provenance,
        row=run.row,
    )


def _sources(run: TaskRun) -> dict[str, str]:
    """The source hash of each kind of plugin; of a suite, of all its members together."""
    known = run.run.spec.get("environment", {}).get("sources", {})
    task = f"task {run.row.task.partition('/')[0]}"
    found: dict[str, str] = {}
    for kind in ("task", "defense", "attack"):
        of_kind = {name: one for name, one in known.items() if name.startswith(f"{kind} ")}
        if kind == "task":
            of_kind = {name: one for name, one in of_kind.items() if name == task}
        if of_kind:
            only = next(iter(of_kind.values()))
            found[kind] = only if len(of_kind) == 1 else hash_text(canonical_json(of_kind))
    return found


def labels(entries: Sequence[Entry], kind: str) -> list[str]:
    """What each entry's defense or attack is called among these.

    Its name, settings in which namesakes differ, and of a plugin always its source's hash: so two
    versions are never called the same.
    """
    names: list[str] = [getattr(entry.row, kind) for entry in entries]
    versions = [_told_apart_by(entry, kind) for entry in entries]
    values: dict[tuple[str, str], set[str]] = {}
    having: Counter[tuple[str, str]] = Counter()
    for name, version in zip(names, versions, strict=True):
        for key, value in version.items():
            values.setdefault((name, key), set()).add(value)
            having[name, key] += 1
    count = Counter(names)

    def differs(name: str, key: str) -> bool:
        return key == "source" or len(values[name, key]) > 1 or having[name, key] < count[name]

    return [
        " ".join([name, *(f"{k}={value}" for k, value in version.items() if differs(name, k))])
        for name, version in zip(names, versions, strict=True)
    ]


def _told_apart_by(entry: Entry, kind: str) -> dict[str, str]:
    """Everything that makes a version of a plugin, as text."""
    found = {key: canonical_json(value) for key, value in entry.config[kind].items()}
    if kind == "attack" and entry.flops is not None:
        found["flops"] = f"{entry.flops:g}"
    if kind == "defense":
        found["hook point"] = str(entry.config["site"])
    if kind in entry.sources:
        found["source"] = entry.sources[kind][:HASH_SHOWN]
    return found
