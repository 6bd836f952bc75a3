"""How good an SAE is on text: what it explains, how sparse it is, what the model loses by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.forward import final_states
from saebench_recovery.model.hooks import Edit
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.training.activations import content, laid_out, residuals
from saebench_recovery.training.text import Chat, content_count, rows

if TYPE_CHECKING:
    from saebench_recovery.targets.target import Target

MEASURED = 16_384  # tokens at most that an SAE is read on
SPLICED = 2_048  # tokens at most that the whole model is run on, three times
MASSIVE = 100  # times the median dimension's variance


class Reconstruction(BaseModel):
    """How an SAE reads residuals; null where they do not vary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    explained_variance: float | None = Field(description="1 - error / variance, summed over all")
    l0: float = Field(description="latents that are on, mean over tokens")
    dead: float = Field(description="share of latents that are on at none of the tokens")
    massive_dimensions: tuple[int, ...] = Field(
        description=f"dimensions with over {MASSIVE} times the median dimension's variance"
    )
    massive_share: float | None = Field(description="of the variance that is theirs")
    explained_variance_without_massive: float | None


class CrossEntropy(BaseModel):
    """Nats per predicted token, of the model as it is and with another residual at the site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    clean: float
    spliced: float = Field(description="with the SAE's reconstruction")
    ablated: float = Field(description="with zero")
    recovered: float | None = Field(description="(ablated - spliced) / (ablated - clean)")


class Quality(BaseModel):
    """An SAE at its hook point."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hook: str
    architecture: str
    width: int
    reconstruction: Reconstruction
    cross_entropy: CrossEntropy


def quality(target: Target, site: Site, documents: Iterable[str | Chat]) -> Quality:
    """Measure the target's SAE at a site on the first of these texts and chats.

    Raises:
        UserError: there is no SAE there, or hardly any text.
    """
    dictionary = target.dictionary(site)
    every = list(_first(target, rows(target, documents), MEASURED))
    some = list(_first(target, every, SPLICED))
    if sum(content_count(target, row) for row in some) < 2:
        raise UserError("the text is too short to measure on: it has fewer than two tokens")
    return Quality(
        hook=str(site),
        architecture=dictionary.architecture,
        width=dictionary.width,
        reconstruction=reconstruction(dictionary, residuals(target, site, every)),
        cross_entropy=spliced_in(target, dictionary, some),
    )


def _first(
    target: Target, every: Iterable[tuple[int, ...]], tokens: int
) -> Iterator[tuple[int, ...]]:
    """Rows from the start until they have so many tokens."""
    found = 0
    for row in every:
        if found >= tokens:
            return
        found += content_count(target, row)
        yield row


@torch.no_grad()
def reconstruction(dictionary: Dictionary, parts: Iterable[Tensor]) -> Reconstruction:
    """Read residuals [N, D], in parts that need not be held together.

    Variance is about the mean over all tokens. What a few dimensions of a model hold most of says
    little about the others, so those are also left out.
    """
    D, M = dictionary.d_model, dictionary.width
    total_D, square_D, error_D = torch.zeros(3, D, dtype=torch.float64)
    on_M = torch.zeros(M)
    tokens = 0
    for resid_ND in parts:
        decoded_ND = torch.zeros_like(resid_ND)
        for latents in dictionary.pieces():
            z_NS = latents.read(resid_ND)
            decoded_ND += latents.decoded(z_NS)
            on_M[latents.chosen] += (z_NS != 0).sum(0).cpu()
        error_ND = resid_ND - dictionary.restored(decoded_ND, resid_ND)
        x_ND = resid_ND.cpu().double()
        total_D += x_ND.sum(0)
        square_D += x_ND.square().sum(0)
        error_D += error_ND.cpu().double().square().sum(0)
        tokens += len(resid_ND)
    variance_D = (square_D - total_D.square() / tokens).clamp(min=0)
    massive_D = variance_D > MASSIVE * variance_D.median()
    total = float(variance_D.sum())
    return Reconstruction(
        tokens=tokens,
        explained_variance=_explained(error_D, variance_D),
        l0=float(on_M.sum()) / tokens,
        dead=float((on_M == 0).float().mean()),
        massive_dimensions=tuple(massive_D.nonzero()[:, 0].tolist()),
        massive_share=float(variance_D[massive_D].sum()) / total if total else None,
        explained_variance_without_massive=_explained(error_D[~massive_D], variance_D[~massive_D]),
    )


def _explained(error_D: Tensor, variance_D: Tensor) -> float | None:
    total = float(variance_D.sum())
    return 1 - float(error_D.sum()) / total if total else None


@torch.no_grad()
def spliced_in(
    target: Target, dictionary: Dictionary, every: Sequence[tuple[int, ...]]
) -> CrossEntropy:
    """Cross-entropy with the residual of content tokens replaced; BOS and specials keep theirs."""
    lost = torch.zeros(3, dtype=torch.float64)
    tokens = 0
    for laid in laid_out(target, every):
        keep_RQ1 = content(target, laid)[:, :, None]

        def spliced(resid_RQD: Tensor, keep_RQ1: Tensor = keep_RQ1) -> Tensor:
            made = dictionary.reconstruct(resid_RQD)
            return torch.where(keep_RQ1, made.to(resid_RQD.dtype), resid_RQD)

        def ablated(resid_RQD: Tensor, keep_RQ1: Tensor = keep_RQ1) -> Tensor:
            return resid_RQD.masked_fill(keep_RQ1, 0)

        edits: list[dict[Site, Edit]] = [
            {},
            {dictionary.site: spliced},
            {dictionary.site: ablated},
        ]
        lost += torch.tensor([_nats(target, laid, edit) for edit in edits], dtype=torch.float64)
        tokens += int(keep_RQ1[:, 1:].sum())
    clean, spliced_ce, ablated_ce = (lost / tokens).tolist()
    gap = ablated_ce - clean
    return CrossEntropy(
        tokens=tokens,
        clean=clean,
        spliced=spliced_ce,
        ablated=ablated_ce,
        recovered=(ablated_ce - spliced_ce) / gap if gap > 0 else None,
    )


def _nats(target: Target, laid: Batch, edits: dict[Site, Edit]) -> float:
    """Summed cross-entropy of the content tokens, a row of logits at a time."""
    hidden_RQD = final_states(target, laid, edits)
    keep_RQ = content(target, laid)[:, 1:]
    total = 0.0
    for hidden_QD, ids_Q, keep_Q in zip(
        hidden_RQD[:, :-1], laid.ids_RQ[:, 1:], keep_RQ, strict=True
    ):
        logits_NV = target.logits(hidden_QD[keep_Q])
        total += float(cross_entropy(logits_NV, ids_Q[keep_Q], reduction="sum"))
    return total
