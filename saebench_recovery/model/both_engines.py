"""One random prompt through both engines, with an edit at every hook point, and where they differ.

The engine that searches is given the prompt beside a longer one, behind a cache boundary, in a tail
that begins at a hook point, and is let go on for a few tokens. The reference engine has it alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model import prompt_rules
from saebench_recovery.model.activations import as_written
from saebench_recovery.model.attention import layers_noted
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.examples import Example
from saebench_recovery.model.forward import final_states, prefill
from saebench_recovery.model.generation import continued
from saebench_recovery.model.hooks import blocks, skipping
from saebench_recovery.model.language_model import LanguageModel
from saebench_recovery.model.plain import Conditions, Pass, PlainModel, as_eager
from saebench_recovery.model.products import own_products
from saebench_recovery.model.sampled_blocks import run_blocks

SHORT, LONG, NEW = 11, 16, 2  # tokens of either prompt, and generated
CACHED = (5, 8)  # of each prompt, so that the first one's are padded
ALLOWED = 1e-3  # relative, at every position; exact architectures are within 1e-5
ALLOWED_ROUNDED = 0.1  # in half precision, at the median position
STIRRED = 0.3  # share of the residual that an edit adds, with its dimensions in another order


Hold = Callable[[Site | str, Tensor], None]  # what is held, and its error at each position


class Disagreement(Exception):  # noqa: N818
    """Where the two engines first differ."""

    def __init__(self, where: Site | str, error: float) -> None:
        differs = "differs from the reference engine by"
        super().__init__(f"{where} {differs} {error:.2g} of its size")
        self.where = where


class _Settings(BaseModel):
    include_bos: bool = False


@dataclass(eq=False)
class _Stirred:
    """A defense whose edit is of the residual's own order, so that whatever follows moves."""

    latents: Mapping[Site, Any]
    name: ClassVar[str] = "stirred"
    sees_only_latents: bool = False
    title: str = "the check at load"
    false_alarms: float | None = None

    @property
    def config(self) -> Any:
        return _Settings()

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD + STIRRED * resid_BTD.roll(1, -1)

    def alarm(self, site: Site, resid_BTD: Tensor, *, entering: bool) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class _Seen:
    """What the engine that searches saw of the first prompt, float32.

    `parts` holds the position at which each begins, and the residuals [T, D] by site before the
    edit. `logits_QV` are those of the last positions, of what was written too, from the tail.
    """

    written: tuple[int, ...]
    parts: tuple[tuple[int, Mapping[Site, Tensor]], ...]
    logits_QV: Tensor


@torch.no_grad()
def compared(
    target: LanguageModel, sites: Sequence[Site], first: Site
) -> tuple[dict[str, float], tuple[int, ...]]:
    """The largest relative error by what is compared, and the blocks that were run.

    The tail begins at the site `first`.

    Raises:
        Disagreement: an error is larger than allowed.
        UserError: attention is not computed by the function that the engine registers.
    """
    run = run_blocks(target.model, {site.layer for site in sites})
    stirred = _Stirred(dict.fromkeys(sites, SimpleNamespace(features=())))
    short, long = _prompts(target)
    with skipping(target.model, set(range(len(blocks(target.model)))) - set(run)):
        seen = _seen(DefendedModel(target, stirred, held={}), (short, long), first, run)
        with as_eager(target.model), as_written(target.model), own_products(target.model):
            plain = PlainModel(target.model, target.tokenizer, {})
            wanted = plain.run((*short.prompt, *seen.written[:-1]), Conditions(stirred))
    errors: dict[str, float] = {}
    exact = target.dtype == torch.float32

    def hold(where: Site | str, error_T: Tensor) -> None:
        # In half precision, rounding alone may send single tokens to other experts of a mixture.
        error = float(error_T.max() if exact else error_T.median())
        errors[str(where)] = max(error, errors.get(str(where), 0.0))
        if not error <= (ALLOWED if exact else ALLOWED_ROUNDED):
            raise Disagreement(where, error)

    _hold_all(sites, seen, wanted, hold)
    return errors, run


def _seen(
    active: DefendedModel, examples: tuple[Example, Example], first: Site, run: Sequence[int]
) -> _Seen:
    target = active.target
    written = continued(active, examples, NEW)[0]
    begin = [min(c, len(e.prompt) - 1) for c, e in zip(CACHED, examples, strict=True)]
    # What is written stands behind another answer, as the second candidate of a packed row.
    answered = [e.with_candidates(e.prompt[-NEW:], written) for e in examples]
    laid = target.batch(answered, begin)
    before, window = Trace(), Trace()
    with layers_noted() as noted:
        start = prefill(
            target,
            laid.prefix,
            laid,
            lambda left: active.edits(left, None, before),
            active.edits(laid, None, window),
            first,
        )
    if Counter(noted) != Counter((*run, *run)):  # once each before and behind the boundary
        raise UserError(
            f"{type(target.model).__name__} computes attention in a way of its own in some blocks, "
            "so that a prefix cannot be shared; use an architecture with softmax attention by "
            "transformers' interface"
        )
    edits = {s: edit for s, edit in active.edits(laid).items() if not start.contains(s)}
    length = len(examples[0].prompt) - begin[0]
    hidden_QD = final_states(target, laid, edits, start)[1, : length + len(written) - 1]
    parts = (
        (0, {s: x[0, -begin[0] :] for s, x in before.before.items()}),
        (begin[0], {s: x[0, :length] for s, x in window.before.items()}),
    )
    return _Seen(written, parts, target.logits(hidden_QD))


def _hold_all(
    sites: Sequence[Site],
    seen: _Seen,
    wanted: Pass,
    hold: Hold,
) -> None:
    """Hold residuals, what blocks add, logits and the choice of tokens, in the model's order."""
    for site in sites:
        for begin, resid in seen.parts:
            found_TD = resid[site]
            hold(site, _error(found_TD, wanted.before[site][begin : begin + len(found_TD)]))
    for layer in sorted({site.layer for site in sites}):
        _hold_sums(layer, wanted, hold)
    count = len(seen.logits_QV)
    hold("the tail's logits", _error(seen.logits_QV, wanted.logits_TV[-count:]))
    chosen_NV = wanted.logits_TV[-len(seen.written) :]
    token_N = torch.tensor(seen.written, device=chosen_NV.device)
    gap_N = chosen_NV.amax(1) - chosen_NV.gather(1, token_N[:, None])[:, 0]
    hold("the choice of generated tokens", gap_N / chosen_NV.norm(dim=1))


def _hold_sums(layer: int, wanted: Pass, hold: Hold) -> None:
    """What attention and MLP are said to add is what the residual stream gains in the block."""
    before, after = wanted.before, wanted.after
    pre, attention, middle, mlp, post = (
        Site(layer, kind)
        for kind in (
            "hook_resid_pre",
            "hook_attn_out",
            "hook_resid_mid",
            "hook_mlp_out",
            "hook_resid_post",
        )
    )
    if middle in before:
        if attention in after:
            hold(attention, _error(after[pre] + after[attention], before[middle]))
        if mlp in after:
            hold(mlp, _error(after[middle] + after[mlp], before[post]))
    elif attention in after and mlp in after:
        hold(mlp, _error(after[pre] + after[attention] + after[mlp], before[post]))
    elif attention in after or mlp in after:  # alone, neither can be held to anything
        hold(attention if attention in after else mlp, torch.tensor(torch.inf))


def _error(found_TN: Tensor, wanted_TN: Tensor) -> Tensor:
    """Relative error [T] at each position."""
    size_T = wanted_TN.float().norm(dim=1).clamp(min=1e-12)
    error_T: Tensor = (found_TN.float().to(wanted_TN.device) - wanted_TN).norm(dim=1) / size_T
    return error_T


def _prompts(target: LanguageModel) -> tuple[Example, Example]:
    """Two random prompts that fit into the context."""
    drawn = torch.Generator().manual_seed(0)
    limit = prompt_rules.context(target.model.config) or LONG + NEW
    rows = min(target.embedding.weight.shape[0], len(target.tokenizer))
    plain_V = torch.tensor([t for t in range(rows) if t not in target.special] or [0])

    def prompt(length: int) -> Example:
        fitting = max(2, min(length, limit - NEW))
        ids = plain_V[torch.randint(len(plain_V), (fitting,), generator=drawn)].tolist()
        begin = [] if target.bos is None else [target.bos]
        return Example("the check at load", (*begin, *ids[len(begin) :]), ((ids[-1],),))

    return prompt(SHORT), prompt(LONG)
