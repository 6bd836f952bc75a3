"""Whether later layers carry a recovery in their latents or beside them: one of the two is held.

At every later site with an SAE, with x the residual under the delta, x0 the defended one without it
and r the SAE's reconstruction, what goes on is

    r(x) + x0 - r(x0)        with the SAE residual held: latents move
    r(x0) + x - r(x)         with the latents held: the SAE residual moves

An effect that does not survive the first needs the later SAE residual; one that does not survive
the second needs the later latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, ResidualDelta
from saebench_recovery.model.defended import Trace
from saebench_recovery.model.forward import forward
from saebench_recovery.model.hooks import Edit
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.scoring.setting import Setting

Held = Literal["residual", "latents"]


def later_sites(setting: Setting, delta: ResidualDelta) -> list[Site]:
    """Sites behind the perturbed ones that have an SAE and are read.

    None for a task that generates: its answer has no defended value to be held at.
    """
    if setting.task.new_tokens:
        return []
    return setting.target.sites_after(max(delta.values), setting.task.pool)


@torch.no_grad()
def works_holding(
    setting: Setting, examples: Sequence[Example], delta: ResidualDelta, held: Held
) -> Tensor:
    """Whether the behaviour is shown, bool [E], with one of the two held at all later sites."""
    target, active, task = setting.target, setting.active, setting.task
    sites = later_sites(setting, delta)
    batch, defended = target.batch(list(examples)), Trace()
    forward(target, batch, active.edits(batch, trace=defended, watch=tuple(sites)), pool=task.pool)
    edits = dict(active.edits(batch, delta))
    for site in sites:
        edits[site] = _holding(target.dictionary(site), edits.get(site), defended.after[site], held)
    return task.behaviour(forward(target, batch, edits, pool=task.pool))


def _holding(dictionary: Dictionary, own: Edit | None, defended: Tensor, held: Held) -> Edit:
    """The site's own edit, and then what is held."""
    expressed = dictionary.reconstruct(defended)

    def edit(resid_RQD: Tensor) -> Tensor:
        x = (resid_RQD if own is None else own(resid_RQD)).float()
        moved = dictionary.reconstruct(x) - expressed
        kept = defended + moved if held == "residual" else x - moved
        return kept.to(resid_RQD.dtype)

    edit.kind = (held, getattr(own, "kind", None))  # type: ignore[attr-defined]  # see `hooks.kinds`
    return edit
