"""What an attack declares, and a first search of one flip, before any work is spent on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Attack, Example
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.kinds import KINDS
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.schema import Finding
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.check.catalogue import finding, refusal
from saebench_recovery.scoring.setting import Flip, Setting

COUNTS = {"length": 0, "abreast": 1}  # what an attack says as a whole number, and its least
ONE_STEP = 1.0  # FLOPs: searches that mind their allowance end after a step


def check_attack(
    setting: Setting, flips: Sequence[Flip], *, try_built_in: bool = False
) -> list[Finding]:
    """What is wrong with an attack, or with the members of a suite.

    The built-in ones are searched with only if asked for: they return what they must.
    """
    return [
        found
        for member in setting.members
        for found in check_member(member, flips, try_built_in=try_built_in)
    ]


def check_member(
    setting: Setting, flips: Sequence[Flip], *, try_built_in: bool = False
) -> list[Finding]:
    """What is wrong with one attack; see `check_attack`."""
    attack = setting.attack
    try:
        declared = list(_declared(setting, [flip.example for flip in flips]))
        tried = try_built_in or not registry.is_built_in("attack", attack.name)
        if flips and tried and not declared and not attack.learns:
            _search(setting, flips[0])
    except UserError as error:
        return [refusal(error)]
    return declared


def _declared(setting: Setting, examples: Sequence[Example]) -> Iterator[Finding]:
    attack, defense = setting.attack, setting.defense
    for name, least in COUNTS.items():
        count = getattr(attack, name)
        if type(count) is not int or count < least:
            allowed = f"allowed: a whole number from {least}"
            raise UserError(f"{attack.title}: {name} is {count!r:.100}; {allowed}")
    if attack.space not in KINDS:
        words = f"{attack.title} searches {attack.space!r}; there are {', '.join(sorted(KINDS))}"
        yield finding("unknown-space", words)
        return
    if attack.space == Residual.kind:
        behind = [site for site in attack.sites(defense) if site > max(defense.latents)]
        if behind and setting.spec.threat_model == "reclamp":
            words = f"{attack.title} perturbs {behind[0]}, behind the last defended site"
            yield finding("behind-defense", words)
        yield from _positions(setting, examples)


def _positions(setting: Setting, examples: Sequence[Example]) -> Iterator[Finding]:
    """The first example whose positions cannot all act."""
    attack = setting.attack
    for example in examples:
        positions = list(attack.positions(setting.task, example))
        # A teacher-forced answer is run up to its last token, which predicts nothing scored.
        reach = len(example.prompt) + max(len(c) for c in example.candidates) - 1
        outside = [p for p in positions if not 0 <= p < reach]
        if outside:
            words = f"{attack.title} perturbs position {outside[0]} of {example.id!r}"
            yield finding("positions-outside", f"{words}, which has {reach} tokens that act")
            return
        if not positions or len(set(positions)) < len(positions):
            words = f"{attack.title} names the positions {positions[:8]} of {example.id!r}"
            yield finding("no-positions", words)
            return


def _search(setting: Setting, flip: Flip) -> None:
    """A search of one flip, held to what it must return.

    Raises:
        UserError: it raises or returns something else.
    """
    meter = Meter()
    # Behind a pooled site no block is run: a search costs nothing there, and no allowance ends it.
    allowance = ONE_STEP if setting.task.pool is None else None
    short = setting.spec.model_copy(update={"flops": allowance})
    with meter.counting():
        one = replace(setting, spec=short).handed_out()
        Attack.run(setting.attack, posed(one, [flip], meter))
