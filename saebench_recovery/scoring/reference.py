"""The reference attack of each space: what a wrong answer costs when the harness asks for it.

A plugin could make its own control weak; this one it cannot touch.
"""

from __future__ import annotations

from dataclasses import replace

from saebench_recovery.attacks._ascent import ResidualAscent
from saebench_recovery.attacks.gcg import GreedyCoordinateGradient
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.attacks.prefill import Prefill
from saebench_recovery.attacks.quantise import Quantise
from saebench_recovery.attacks.relearn import Relearn
from saebench_recovery.attacks.soft_suffix import SoftSuffixAscent
from saebench_recovery.attacks.unconstrained import Unconstrained
from saebench_recovery.interfaces import Attack, Perturbation
from saebench_recovery.perturbations.problem import Problem

BUILT_IN = (
    Orthogonal,
    Unconstrained,
    SoftSuffixAscent,
    GreedyCoordinateGradient,
    Prefill,
    Relearn,
    Quantise,
)


def is_reference(attack: Attack) -> bool:
    """Whether an attack is its space's reference, so that its own control says the same."""
    return type(attack) in BUILT_IN and not attack.learns


def injected(attack: Attack, problem: Problem, flops: float) -> Perturbation:
    """What the reference attack of the problem's space finds: with its own settings, or for more.

    An attack chooses what its rows of the right answer cost, so that is no limit here: at less, few
    wrong answers come. Where it spent more FLOPs a row, the reference may spend as many. The run's
    own allowance, if there is one, holds for both.
    """
    reference, alone, before = _reference(attack), problem.afresh(), problem.flops
    found = Attack.run(reference, alone)
    if alone.allowance is not None or problem.flops - before >= flops * problem.size:
        return found
    return Attack.run(reference, replace(problem.afresh(), allowance=flops))


def _reference(attack: Attack) -> Attack:
    match attack.space:
        case "tokens":
            own = GreedyCoordinateGradient.Config(length=attack.length)
            return GreedyCoordinateGradient(own)
        case "embeddings":
            return SoftSuffixAscent(SoftSuffixAscent.Config(length=attack.length))
        case "beginning":
            return Prefill(Prefill.Config(length=attack.length))
        case "low-rank":
            return Relearn()
        case "rounded":
            return Quantise()
        case _:
            constrained: type[ResidualAscent] = Orthogonal if attack.constrained else Unconstrained
            return constrained()
