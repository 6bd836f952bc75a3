"""The check at load: the engine that searches against the reference engine, on a random prompt.

Every architecture is run exactly or refused. A random prompt stands beside a longer one, behind a
cache boundary, in a tail from a hook point on, and is continued by a few tokens, while an edit acts
at every hook point that is asked for; then the reference engine runs it alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import KINDS, Site
from saebench_recovery.model.both_engines import Disagreement, compared
from saebench_recovery.model.hooks import blocks, edited
from saebench_recovery.model.language_model import LanguageModel, refusal
from saebench_recovery.model.plain_hooks import replaced
from saebench_recovery.schema import Agreement

OUTSIDE = ("hook_resid_pre", "hook_resid_post")  # of a block


def check_agreement(target: LanguageModel, asked: Iterable[Site] = ()) -> Agreement:
    """Hold the engine to the reference engine at hook points, and list other kinds that fail.

    Of a large model some blocks are run (see `run_blocks`), the others hand the residual on.

    Raises:
        UserError: the architecture does not run, or not exactly, at a hook point that is asked for.
    """
    name = type(target.model).__name__
    wanted = sorted(set(asked))
    depth = len(blocks(target.model))
    for site in wanted:
        if site.layer >= depth:
            raise UserError(f"{site} does not exist: the model has {depth} blocks")
    layers = sorted({site.layer for site in wanted}) or [depth // 2]
    refused = _without_hooks(target, layers[0], wanted)
    while True:
        sites = [Site(layer, kind) for layer in layers for kind in KINDS if kind not in refused]
        try:
            errors, ran = compared(target, sites, min(wanted, default=sites[-1]))
        except Disagreement as found:
            line = f"{name} is not run exactly: {found}"
            kind = found.where.kind if isinstance(found.where, Site) else None
            if kind in (None, *OUTSIDE) or any(site.kind == kind for site in wanted):
                raise UserError(line) from None
            refused[kind] = line
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever an architecture raises that is run in another way
            raise refusal(target.model, error) from error
        else:
            return Agreement(errors=errors, refused=refused, blocks=ran)


def _without_hooks(target: LanguageModel, layer: int, asked: list[Site]) -> dict[str, str]:
    """Kinds of hook points that one of the engines does not have, and the line that says so."""
    refused: dict[str, str] = {}
    for kind in KINDS:
        site = Site(layer, kind)
        try:
            with edited(target.model, {site: _same}), replaced(target.model, {site: _same}):
                pass
        except UserError as error:
            if any(other.kind == kind for other in asked):
                raise UserError(f"{type(target.model).__name__}: {error}") from None
            refused[kind] = str(error)
    return refused


def _same(resid: Tensor) -> Tensor:
    return resid
