"""Cells of a sweep: plans that are checked before anything runs, and what they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import is_file
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.protocols.apply import fill
from saebench_recovery.results.store import RESULT, STATE
from saebench_recovery.runs.fingerprint import Fingerprints
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.spec import OPTIONS, RunSpec

Groups = Sequence[Sequence[Plan]]


def planned(specs: Iterable[RunSpec]) -> list[Plan]:
    """The plan of every cell.

    Raises:
        UserError: an unknown name, or two cells alike.
    """
    fingerprints, plans = Fingerprints(), dict[str, Plan]()
    for spec in specs:
        plan = Plan.of(check_names(fill(spec)), fingerprints)
        if plan.identity in plans:
            first, second = title(plans[plan.identity]), title(plan)
            also = "" if first == second else f" and {second!r}"
            raise UserError(f"two cells are alike, with identity {plan.identity}: {first!r}{also}")
        plans[plan.identity] = plan
    return list(plans.values())


def title(plan: Plan) -> str:
    """What a cell is called: that by which runs are compared, and what is not as by default."""
    spec = plan.spec
    words = [f"{spec.target}: {spec.defense} against {spec.attack} on {', '.join(spec.tasks)}"]
    for one in OPTIONS:
        value = one.value(spec)
        if one.path[0] not in ("target", "defense", "attack", "tasks") and value != one.default:
            words.append(f"{'.'.join(one.path)} {canonical_json(value)}")
    return ", ".join(words)


def state(plan: Plan, out: Path) -> str:
    """How far a cell has come."""
    if is_file(out / plan.identity / RESULT):
        return "done"
    return "begun" if is_file(out / plan.identity / STATE) else "to do"


def grouped(plans: Sequence[Plan], shares: int) -> Groups:
    """Cells that share something together, and targets one after the other.

    A group is of defenses that act alike, and in it cells that share a search stand side by side.
    Groups are cut so that each of `shares` workers has something to do. Imports the defenses.
    """
    by_target: dict[str, dict[object, dict[object, list[Plan]]]] = {}
    for plan in plans:
        of_target = by_target.setdefault(plan.spec.target, {})
        acting = tuple(plan.intervention(task) for task in plan.spec.tasks)
        of_target.setdefault(acting, {}).setdefault(shared_search(plan), []).append(plan)
    largest = ceil(len(plans) / shares)
    groups = [
        [plan for alike in group.values() for plan in alike]
        for of_target in by_target.values()
        for group in of_target.values()
    ]
    return [
        group[begin : begin + largest]
        for group in groups
        for begin in range(0, len(group), largest)
    ]


def shared_part(plan: Plan) -> object:
    """Equal for plans that share the passes before an attack on all of their tasks."""
    return tuple(plan.before_attack(task) for task in plan.spec.tasks)


def shared_search(plan: Plan) -> object:
    """Equal for plans whose attack finds the same on all of their tasks."""
    return tuple(plan.search(task) for task in plan.spec.tasks)


def shard(plans: Sequence[Plan], which: str) -> list[Plan]:
    """The cells of one of several machines, `i/n` with i from 1 to n, whatever is done already.

    Raises:
        UserError: `which` is of another form.
    """
    number, slash, count = which.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard {which!r}: expected I/N, such as 1/8, with I from 1 to N")
    groups = grouped(plans, int(count))
    return [plan for group in groups[int(number) - 1 :: int(count)] for plan in group]
