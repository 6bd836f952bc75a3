"""The kinds of perturbations: what a search may change, one row each."""

from __future__ import annotations

from saebench_recovery.base.errors import UserError
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.roles import Judge
from saebench_recovery.perturbations.answer_beginning import AnswerBeginning, Beginning
from saebench_recovery.perturbations.low_rank import LowRank, LowRankChange
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.perturbations.rounding import RoundedWeights, Rounding
from saebench_recovery.perturbations.space import Posing, Reach
from saebench_recovery.perturbations.suffix_embeddings import SoftSuffix, SuffixEmbeddings
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens, TokenSuffix

PosedSpace = (
    type[Residual]
    | type[SuffixTokens]
    | type[SuffixEmbeddings]
    | type[AnswerBeginning]
    | type[LowRank]
    | type[Rounding]
)

KINDS: dict[str, tuple[PosedSpace, type[Perturbation]]] = {
    "residual": (Residual, ResidualDelta),
    "tokens": (SuffixTokens, TokenSuffix),
    "embeddings": (SuffixEmbeddings, SoftSuffix),
    "beginning": (AnswerBeginning, Beginning),
    "low-rank": (LowRank, LowRankChange),
    "rounded": (Rounding, RoundedWeights),
}


def inapplicable(kind: str, task: Judge) -> str | None:
    """Why perturbations of this kind can do nothing to what a task reads; None if they can.

    A kind that there is not is another fault, and found elsewhere.
    """
    return KINDS[kind][0].inapplicable(task) if kind in KINDS else None


def pose(kind: str, reach: Reach, posing: Posing) -> Problem:
    """The problem of an attack that searches this kind of perturbation.

    Raises:
        UserError: the kind does not apply to the task, or see its own `pose`.
    """
    reason = inapplicable(kind, posing.task)
    if reason is not None:
        raise UserError(reason)
    return KINDS[kind][0].pose(reach, posing)
