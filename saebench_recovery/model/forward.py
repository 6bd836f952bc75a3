"""Passes through the model: whole, or only its tail over a frozen prefix.

Nothing is computed twice: a tail starts at the first perturbed site and position, reads the
keys and values of earlier positions from a cache, and computes only the logits that are read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from saebench_recovery.base.sites import Site
from saebench_recovery.model.attention import FrozenPrefix, reading
from saebench_recovery.model.batch import Batch, Prefix, tokens_only
from saebench_recovery.model.examples import Output
from saebench_recovery.model.hooks import (
    Edit,
    blocks,
    edited,
    entry,
    kinds,
    start_block,
    starting_at,
)
from saebench_recovery.model.language_model import LanguageModel
from saebench_recovery.model.meter import counted
from saebench_recovery.model.packing import Packing, masked
from saebench_recovery.model.scores import candidate_scores, forced

# Which edits hold for a batch: the active defense, and a perturbation where there is one.
Edits = Callable[[Batch], Mapping[Site, Edit]]


@dataclass(frozen=True)
class Start:
    """Where a tail begins: the site, the residual that enters there, and the frozen prefix.

    `prefix_mask_EP` marks the prefix's real tokens; E examples serve R = E * n rows. `pooled`
    is the prefix's share in a mean over content tokens: its sum [E, D] and count [E, 1]. A tail
    `at_tokens` begins with its own tokens, and no residual is put in their place.
    """

    site: Site
    resid_RQD: Tensor
    prefix: FrozenPrefix
    prefix_mask_EP: Tensor
    pooled: tuple[Tensor, Tensor] | None = None
    at_tokens: bool = False

    def contains(self, site: Site) -> bool:
        """Whether the edit at `site` is in the residual already, and must not be made again."""
        at = entry(self.site)
        return site < at or site == at != self.site

    def rows(self, index_R: Tensor, index_E: Tensor) -> Start:
        """Some rows and the prefixes that they read, in equal groups."""
        prefix, mask = self.prefix.gather(index_E), self.prefix_mask_EP[index_E]
        resid = self.resid_RQD if self.at_tokens else self.resid_RQD[index_R]
        pooled = self.pooled and (self.pooled[0][index_E], self.pooled[1][index_E])
        return Start(self.site, resid, prefix, mask, pooled, self.at_tokens)

    def before(self, column: int) -> Start:
        """The same for the windows' first columns."""
        return self if self.at_tokens else replace(self, resid_RQD=self.resid_RQD[:, :column])


def forward(
    target: LanguageModel,
    batch: Batch,
    edits: Mapping[Site, Edit],
    start: Start | None = None,
    *,
    pool: Site | None = None,
    distribution: bool = False,
) -> Output:
    """Run a batch, whole (`start` is None: windows begin at 0) or from `start`.

    Returns the candidates' scores [E, C] in float32 and, if asked for, the next-token
    log-probabilities [E, V] at the readout. With `pool`, the mean residual [E, D] over content
    tokens at that site instead, and no later layer is run.
    """
    if start is not None:
        edits = {site: edit for site, edit in edits.items() if not start.contains(site)}
    if pool is not None:
        resid_RQD = until_site(target, batch, edits, start, pool)
        pooled_ED = _content_mean(target, batch, resid_RQD, start)[:: batch.rows_per_example]
        return Output(batch.examples, pooled_ED[:, :0], pooled_ED=pooled_ED)
    hidden_RQD = final_states(target, batch, edits, start)
    scores_EC = candidate_scores(target, batch, hidden_RQD)
    if not distribution:
        return Output(batch.examples, scores_EC)
    first = torch.arange(len(batch.readout_E), device=hidden_RQD.device)
    readout_ED = hidden_RQD[first * batch.rows_per_example, batch.readout_E]
    return Output(batch.examples, scores_EC, target.logits(readout_ED).log_softmax(-1))


@torch.no_grad()
def prefill(
    target: LanguageModel,
    prefix: Prefix,
    window: Batch,
    edits: Edits,
    window_edits: Mapping[Site, Edit],
    site: Site,
    pool: Site | None = None,
) -> Start:
    """Cache what a tail from `site` needs, with the defense active on every position.

    Runs the prefixes of E examples once, and then the window's R = E * n rows with
    `window_edits` (the same edits, perhaps recording). `pool` is where the task pools, if it does.
    """
    length, depth = prefix.ids_EP.shape[1], target.depth()
    frozen = FrozenPrefix(length, [None] * len(blocks(target.model)))
    pooled: list[tuple[Tensor, Tensor]] = []
    if length:
        cache = DynamicCache()  # without a config it keeps whole prefixes for windowed layers too
        left = tokens_only(prefix.ids_EP, prefix.mask_EP, prefix.position_EP)
        own_edits = edits(left)  # what they are decides what a pass costs
        left_edits = dict(own_edits)
        if pool is not None:
            made = own_edits.get(pool)

            def add_up(resid_EPD: Tensor) -> Tensor:
                changed = resid_EPD if made is None else made(resid_EPD)
                pooled.append(_content_sum(target, left, changed))
                return changed

            left_edits[pool] = add_up

        def run_prefix() -> Tensor:
            with edited(target.model, left_edits):
                return run_tokens(target, left, prefix.mask_EP, cache)

        _counted(target, left, own_edits, None, depth, run_prefix)
        frozen = FrozenPrefix.taken(length, cache)
    block = start_block(site)
    kept: list[Tensor] = []
    wanted = window_edits.get(entry(site))

    def keep(resid: Tensor) -> Tensor:
        changed = resid if wanted is None else wanted(resid)
        # Edits at the site itself are made again in every tail.
        kept.append(resid if entry(site) == site else changed)
        return changed

    whole = Start(Site(0, "hook_resid_pre"), torch.empty(0), frozen, prefix.mask_EP)

    def run_window() -> Tensor:
        with edited(target.model, {**window_edits, entry(site): keep}), reading(frozen):
            return run_tokens(target, window, _attention_mask(window, whole), frozen)

    _counted(
        target, window, window_edits, replace(whole, at_tokens=True), target.depth(), run_window
    )
    late = [kv if i >= block else None for i, kv in enumerate(frozen.keys_values)]
    share = pooled[0] if pooled else None
    return Start(site, kept[0], FrozenPrefix(length, late), prefix.mask_EP, share)


@torch.no_grad()
def narrowed(
    target: LanguageModel, window: Batch, edits: Mapping[Site, Edit], start: Start, column: int
) -> tuple[Batch, Start]:
    """The columns of a window up to the last that is perturbed, where no block follows the site.

    Positions do not mix any more, so what later columns predict is computed here, once.
    """
    last, width = max(column, int(window.readout_E.max())) + 1, window.ids_RQ.shape[1]
    mixing = start_block(start.site) < target.depth()
    if mixing or last >= width or window.forced_RQ is None:
        return window, start
    later_RQ = window.forced_RQ.index_fill(1, torch.arange(last, device=target.device), -1)
    later = replace(window, forced_RQ=later_RQ)
    settled_R = forced(target, later, final_states(target, window, edits, start))
    return window.before(last, settled_R), start.before(last)


def final_states(
    target: LanguageModel, batch: Batch, edits: Mapping[Site, Edit], start: Start | None = None
) -> Tensor:
    """Final-norm output [R, Q, D] of the window."""

    def work() -> Tensor:
        return _window(target, batch, edits, start)

    return _counted(target, batch, edits, start, target.depth(), work, batch.packing)


def _window(
    target: LanguageModel, batch: Batch, edits: Mapping[Site, Edit], start: Start | None
) -> Tensor:
    mask_RT = batch.mask_RQ if start is None else _attention_mask(batch, start)
    packing = batch.packing
    if packing is None:
        return _run_window(target, batch, mask_RT, edits, start)
    packed, start = _packed(batch, packing, start)
    edits = {site: packing.around(edit) for site, edit in edits.items()}
    past = 0 if start is None else start.prefix.length
    seen_ET = mask_RT.new_ones(len(packed.ids_RQ), past + packing.width)
    with masked(packing, mask_RT):
        return packing.unpacked(_run_window(target, packed, seen_ET, edits, start))


def _packed(batch: Batch, packing: Packing, start: Start | None) -> tuple[Batch, Start | None]:
    """The tokens of packed rows, and what enters them."""
    laid = (batch.ids_RQ, batch.mask_RQ, batch.position_RQ)
    tokens = tokens_only(*(packing.packed(values_RQ) for values_RQ in laid))
    if start is None or start.at_tokens:
        return tokens, start
    return tokens, replace(start, resid_RQD=packing.packed(start.resid_RQD))


def _run_window(
    target: LanguageModel,
    batch: Batch,
    mask_RT: Tensor,
    edits: Mapping[Site, Edit],
    start: Start | None,
) -> Tensor:
    if start is None:
        with edited(target.model, edits):
            return run_tokens(target, batch, mask_RT, None)
    injected = starting_at(target.model, start_block(start.site), start.resid_RQD)
    # Edit hooks are installed before the injection, which prepends itself where both meet.
    with (
        edited(target.model, edits),
        nullcontext() if start.at_tokens else injected,
        reading(start.prefix) if start.prefix.length else nullcontext(),
    ):
        return run_tokens(target, batch, mask_RT, start.prefix)


def _counted(
    target: LanguageModel,
    batch: Batch,
    edits: Mapping[Site, Edit],
    start: Start | None,
    depth: int,
    work: Callable[[], Tensor],
    packing: Packing | None = None,
) -> Tensor:
    """Do a window's pass through the blocks before `depth`, and count it."""
    R, Q = batch.ids_RQ.shape
    E, K = (R, Q) if packing is None else packing.token_EK.shape
    first = 0 if start is None or start.at_tokens else start_block(start.site)
    past = 0 if start is None else start.prefix.length
    kind = (Q, R // E, K, first, depth, past, *kinds(edits))
    return counted(target.model, work, kind=kind, rows=R, token_layers=E * K * (depth - first))


class _SiteReached(Exception):  # noqa: N818
    """Leaves a forward pass once the pooled site has been seen."""


def until_site(
    target: LanguageModel, batch: Batch, edits: Mapping[Site, Edit], start: Start | None, site: Site
) -> Tensor:
    """The residual [R, Q, D] as edited at `site`; later layers are not run."""
    wanted = edits.get(site)
    if start is not None and not start.at_tokens and start.site == entry(site) == site:
        return start.resid_RQD if wanted is None else wanted(start.resid_RQD)
    reached: list[Tensor] = []

    def stop(resid: Tensor) -> Tensor:
        reached.append(resid if wanted is None else wanted(resid))
        raise _SiteReached

    def work() -> Tensor:
        with suppress(_SiteReached):
            _window(target, batch, {**edits, site: stop}, start)
        return reached[0]

    return _counted(target, batch, edits, start, target.depth(site), work, batch.packing)


def content(target: LanguageModel, batch: Batch) -> Tensor:
    """Bool [R, Q]: real tokens that are no sinks of attention, whose activations are outliers."""
    return batch.mask_RQ & ~target.sinks(batch)


def _content_mean(
    target: LanguageModel, batch: Batch, resid_RQD: Tensor, start: Start | None
) -> Tensor:
    total_RD, count_R1 = _content_sum(target, batch, resid_RQD)
    if start is not None and start.pooled is not None:
        share = total_RD.shape[0] // start.pooled[0].shape[0]
        total_RD = total_RD + start.pooled[0].repeat_interleave(share, 0)
        count_R1 = count_R1 + start.pooled[1].repeat_interleave(share, 0)
    return total_RD / count_R1.clamp(min=1)


def _content_sum(target: LanguageModel, batch: Batch, resid_RQD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum [R, D] over content tokens, and their number [R, 1]."""
    weight_RQ1 = content(target, batch)[:, :, None].float()
    return (resid_RQD.float() * weight_RQ1).sum(1), weight_RQ1.sum(1)


def _attention_mask(batch: Batch, start: Start) -> Tensor:
    """2-D mask [R, P + Q] over prefix and window."""
    shared = batch.ids_RQ.shape[0] // max(1, start.prefix_mask_EP.shape[0])
    return torch.cat([start.prefix_mask_EP.repeat_interleave(shared, 0), batch.mask_RQ], 1)


def run_tokens(
    target: LanguageModel, batch: Batch, mask: Tensor, cache: DynamicCache | FrozenPrefix | None
) -> Tensor:
    """Final-norm output of a batch's tokens; what the attention sees is up to `mask`, `cache`."""
    model: Any = target.model
    architecture: Any = type(model.base_model)
    output = model.base_model(
        input_ids=batch.ids_RQ,
        attention_mask=mask.long(),
        position_ids=batch.position_RQ,
        use_cache=cache is not None,
        **{_cache_argument(architecture): cache},
    )
    hidden: Tensor = output.last_hidden_state
    return hidden.to(batch.ids_RQ.device)


@functools.cache
def _cache_argument(model: Any) -> str:
    """What the installed transformers calls the cache of a class of models.

    It was renamed in 5.24.
    """
    named = inspect.signature(model.forward).parameters
    return "cache" if "cache" in named else "past_key_values"
