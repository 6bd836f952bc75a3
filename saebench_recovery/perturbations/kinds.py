"""The kinds of perturbations: what a search may change, one row each."""

from __future__ import annotations

from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.perturbations.answer_beginning import AnswerBeginning, Beginning
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.residual import Residual
from saebench_recovery.perturbations.space import Posing, Reach
from saebench_recovery.perturbations.suffix_embeddings import SoftSuffix, SuffixEmbeddings
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens, TokenSuffix

PosedSpace = type[Residual] | type[SuffixTokens] | type[SuffixEmbeddings] | type[AnswerBeginning]

KINDS: dict[str, tuple[PosedSpace, type[Perturbation]]] = {
    "residual": (Residual, ResidualDelta),
    "tokens": (SuffixTokens, TokenSuffix),
    "embeddings": (SuffixEmbeddings, SoftSuffix),
    "beginning": (AnswerBeginning, Beginning),
}


def pose(kind: str, reach: Reach, posing: Posing) -> Problem:
    """The problem of an attack that searches this kind of perturbation.

    Raises:
        UserError: see the kind's own `pose`.
    """
    return KINDS[kind][0].pose(reach, posing)
