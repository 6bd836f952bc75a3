"""Whether a perturbation can reach what tells a wrong answer from the right one.

A control that cannot succeed says nothing: where it cannot, the injection of a wrong answer is
undefined and the flip says so, instead of a failure that reads like evidence.
"""

from __future__ import annotations

from saebench_recovery.interfaces import Example
from saebench_recovery.model.examples import shared_start
from saebench_recovery.model.hooks import start_block
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.scoring.setting import Setting

UNREACHED = "no-injection-control"


def reaches(setting: Setting, right: Example, wrong: Example) -> bool:
    """Whether the attack's perturbation can act on the first token in which the answers differ.

    Behind the last block positions do not mix any more: a residual perturbation changes only what
    its own positions predict. Everything else acts on all that follows.
    """
    attack, task, target = setting.attack, setting.task, setting.target
    if attack.space != Residual.kind or task.pool is not None:
        return True
    if any(start_block(site) < target.depth() for site in attack.sites(setting.defense)):
        return True
    alike = shared_start(right.candidates[0], wrong.candidates[0])
    return len(right.prompt) - 1 + alike in attack.positions(task, right)
