"""Perturbations as evidence: named tensors and metadata that say of what kind and of whom."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from saebench_recovery.base.errors import UserError
from saebench_recovery.model.perturbation import SHARED, Perturbation
from saebench_recovery.perturbations.kinds import KINDS

NEVER_LEARNED = "never_learned"
PARTS = ("headline", "headline_wrong", "smallest", "smallest_wrong", NEVER_LEARNED)
"""Of each flip: the perturbation that is scored and the smallest one that recovers, towards the
right answer and towards the wrong one; and the one of its never-learned counterpart."""


def pack(
    parts: Mapping[str, Perturbation], ids: Sequence[str], *, task: str, attack: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors named `<part>/<tensor>` with an entry per example, and the metadata beside them."""
    (kind,) = {p.kind for p in parts.values()}
    tensors = {
        # Copies: a file cannot hold tensors that share their memory.
        f"{part}/{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for part, perturbation in parts.items()
        for name, tensor in perturbation.tensors().items()
    }
    metadata = {"kind": kind, "ids": json.dumps(list(ids)), "task": task, "attack": attack}
    return tensors, metadata


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Perturbation]:
    """The perturbations of a file of evidence, by part.

    Raises:
        UserError: a kind that this version does not know, or tensors that are not of it, or not
            of as many examples each.
    """
    kind = metadata.get("kind", "")
    if kind not in KINDS:
        raise UserError(f"evidence of an unknown kind {kind!r}; known: {', '.join(KINDS)}")
    of_each = [tensor for name, tensor in tensors.items() if not is_shared(name)]
    if len({len(tensor) if tensor.ndim else 0 for tensor in of_each}) > 1:
        raise UserError("evidence is damaged: its tensors are of different numbers of examples")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    try:
        return {part: KINDS[kind][1].from_tensors(named) for part, named in parts.items()}
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"evidence does not hold perturbations of kind {kind!r}: {error}") from None


def is_shared(name: str) -> bool:
    """Whether a tensor of evidence is of all examples together, and not an entry of each."""
    return f"/{SHARED}" in f"/{name}"


def joined(chunks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several files' tensors as one, padded to the most positions or tokens.

    What examples share is the same in all files of one attack.
    """
    named: dict[str, list[Tensor]] = {}
    for chunk in chunks:
        for name, tensor in chunk.items():
            named.setdefault(name, []).append(tensor)
    return {
        name: tensors[0] if is_shared(name) else torch.cat(_padded(tensors))
        for name, tensors in named.items()
    }


def _padded(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Equally long in their second dimension; where there is no position or token stands -1."""
    if tensors[0].ndim == 1:
        return list(tensors)
    most = max(tensor.shape[1] for tensor in tensors)
    empty = -1 if tensors[0].dtype == torch.long else 0
    behind = [0] * (2 * tensors[0].ndim - 3)
    return [pad(t, [*behind, most - t.shape[1]], value=empty) for t in tensors]
