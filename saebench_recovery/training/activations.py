"""Residuals of text at a hook point, for an SAE to be trained or measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.batch import Batch, batch
from saebench_recovery.model.examples import Example
from saebench_recovery.model.forward import until_site
from saebench_recovery.training.text import content_count

if TYPE_CHECKING:
    from saebench_recovery.targets.target import Target

ROWS = 16  # of text in one pass


def laid_out(target: Target, rows: Iterable[tuple[int, ...]]) -> Iterator[Batch]:
    """Rows of tokens, some at a time, those of like length together."""
    ordered = sorted(rows, key=len)
    for begin in range(0, len(ordered), ROWS):
        some = ordered[begin : begin + ROWS]
        yield batch([Example("", ids, ((0,),)) for ids in some], device=target.device)


def content(target: Target, laid: Batch) -> Tensor:
    """Bool [R, Q]: neither padding nor the first position nor any special token.

    The first carries a residual many times as long as any other: no SAE should be made for it.
    """
    specials = torch.tensor(sorted(target.special), device=laid.ids_RQ.device)
    return laid.mask_RQ & ~target.sinks(laid) & ~torch.isin(laid.ids_RQ, specials)


@torch.no_grad()
def residuals(target: Target, site: Site, rows: Iterable[tuple[int, ...]]) -> Iterator[Tensor]:
    """Float32 residuals [N, D] of the content tokens, a pass each; later layers are not run."""
    for laid in laid_out(target, rows):
        yield until_site(target, laid, {}, None, site)[content(target, laid)].float()


def shuffled_blocks(
    target: Target, site: Site, rows: Iterator[tuple[int, ...]], size: int, seed: int, skip: int
) -> Iterator[Tensor]:
    """Blocks [N, D] of at least `size` residuals in random order, the first `skip` left out.

    The model does not run for a block that is left out, and every block has its own seed, so a
    run that goes on sees what it would have seen.
    """
    for number in count():
        taken: list[tuple[int, ...]] = []
        found = 0
        while found < size:
            taken.append(next(rows))
            found += content_count(target, taken[-1])
        if number >= skip:
            block_ND = torch.cat(list(residuals(target, site, taken)))
            drawn = torch.Generator().manual_seed(seed * 2**24 + number)
            yield block_ND[torch.randperm(len(block_ND), generator=drawn).to(block_ND.device)]
