"""Cases that show in a run only: small ones, of one fitted defense, and what becomes of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from saebench_recovery import registry
from saebench_recovery.interfaces import Attack, ResidualDelta
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.scoring import replay
from saebench_recovery.scoring.evaluate import attacked
from saebench_recovery.scoring.measures import verdict
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.undisturbed import Undisturbed, undisturbed
from saebench_recovery.spec import RunSpec
from tests.cases.examined import STEPS, organism
from tests.cases.expected import FLAGGED
from tests.journal import MemoryJournal, Scored, quiet

SEARCHED = 24  # prompts
SPEC = RunSpec(defense="clamp", attack="orthogonal", tasks=("ioi",), limit=SEARCHED)


@cache
def _fitted() -> Undisturbed:
    (matchup,) = Plan.of(check_names(SPEC)).matchups.values()
    task, defense, attack = matchup.task, matchup.defense, matchup.attack
    return undisturbed(Setting(organism(), task, defense, attack, SPEC), quiet)


@cache
def honest() -> Scored:
    """The row of `orthogonal` in as few steps."""
    return _scored("orthogonal", steps=STEPS)


def of_search(name: str) -> Scored:
    """The row of a case."""
    organism()  # with the plugin files
    return _scored(name)


def _scored(name: str, **config: Any) -> Scored:
    attack = registry.create("attack", name, config)
    assert isinstance(attack, Attack)
    journal = MemoryJournal()
    with _put_back():
        return Scored(attacked(_fitted(), attack, SPEC, journal, quiet), journal)


@contextmanager
def _put_back() -> Iterator[None]:
    """Undo afterwards what a case replaces in this process."""
    judge: Any = replay
    before = judge.within_limits
    try:
        yield
    finally:
        judge.within_limits = before


# --- what a trick has no effect on: words, and whether it is so ------------------------------


def _clipped(row: Scored) -> bool:
    """At the last token, all of its budget and no more; nothing before it."""
    found = row.headline()
    assert isinstance(found, ResidualDelta)
    ((site, value_EPD),) = found.values.items()
    allowed = SPEC.budget * row.row.spreads[str(site)].value
    last_EP = found.positions_EP == found.positions_EP.amax(1, keepdim=True)
    at_last_E, before = value_EPD.norm(dim=2)[last_EP], value_EPD[~last_EP]
    return not before.any() and bool(((at_last_E / allowed - 1).abs() < 1e-4).all())


def _costs(row: Scored) -> list[float | None]:
    """What each flip had cost when its search first had it."""
    return [record.flops_recovers for record in row.records]


def _borne(row: Scored) -> bool:
    """The search had no row at less than half of what it cost."""
    known = [(r.flops_recovers, r.flops) for r in row.records if r.flops_recovers is not None]
    return bool(known) and all(reached > spent / 2 for reached, spent in known)


NO_EFFECT: dict[str, tuple[str, Callable[[Scored], bool]]] = {
    "cheat-flops": (
        "passes are counted where they are made, and its rows bear them",
        lambda row: (
            row.row.compute.attack.backward == honest().row.compute.attack.backward
            and min(r.flops for r in row.records) > min(r.flops for r in honest().records) / 2
        ),
    ),
    "cheat-success": (
        "what recovers is scoring's to say: nothing does",
        lambda row: row.row.recovery.k == 0 and not any(_costs(row)),
    ),
    "random-search-null": (
        "it is weak and looks it",
        lambda row: row.row.recovery.k < honest().row.recovery.k / 2,
    ),
    "x-bos-scale": ("clipped to the budget of the last token's position", _clipped),
    "x-no-injection": (
        "rows come shuffled: it loses as much of its recovery, and the reference injects",
        lambda row: (
            row.row.recovery.k < honest().row.recovery.k
            and row.row.controls.wrong_target_reference.k >= honest().row.controls.wrong_target.k
        ),
    ),
    "x-oversize-look": (
        "what it looked at is clipped, and looked at again, before it counts as reached",
        lambda row: all(
            verdict(r, "recovery") for r in row.records if r.flops_recovers is not None
        ),
    ),
    "x-self-report": (
        "what reached an objective has to be there: its flips come back at the whole cost",
        lambda row: row.row.recovery.k > 0 and not any(_costs(row)),
    ),
    "x-unbooked": ("its rows bear what went past the door before they are looked at", _borne),
}
SEARCHES = tuple(sorted({*FLAGGED, *NO_EFFECT}))


def outcome(name: str, row: Scored) -> tuple[str, str]:
    """The verdict on a case, and the flag or the words that say so; neither where it gets away."""
    if name in NO_EFFECT:
        words, holds = NO_EFFECT[name]
        return ("no effect", words) if holds(row) else ("", "")
    flag, level = FLAGGED[name]
    raised = {(one.name, one.level) for one in row.row.flags}
    return (level, f"`{flag}`") if (flag, level) in raised else ("", "")
