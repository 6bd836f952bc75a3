"""`gcg`: a suffix of tokens found by greedy coordinate gradient, scored as the string it spells.

Greedy coordinate gradient (arXiv 2307.15043) under the active defense, with what its successors
added: several coordinates a step at first (arXiv 2405.21018), and a buffer of the best suffixes to
go on from (arXiv 2404.02151 and nanoGCG).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from saebench_recovery.attacks._suffix import SuffixAttack
from torch import Generator, Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.seeds import generators
from saebench_recovery.interfaces import TokenSuffix
from saebench_recovery.model.adaptive_batches import Pieces
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.retokenise import Gap, first_stable, neighbourly
from saebench_recovery.perturbations.suffix import TRIES, SuffixProblem
from saebench_recovery.registry import register_attack

SPARE = 2  # replacements drawn for each that is tried: some are unstable or drawn twice
LOOKED_AT = 16  # of the best candidates, until one is stable
PIECE = 2**21  # residual numbers of candidates that run at once


@register_attack("gcg")
class GreedyCoordinateGradient(SuffixAttack):
    """Replaces tokens of the suffix by those that the gradient proposes and a pass confirms."""

    suffix = "tokens"

    class Config(SuffixAttack.Config):
        steps: int = Field(default=16, ge=1, le=10_000)
        candidates: int = Field(default=16, ge=1, description="suffixes tried per step, about")
        topk: int = Field(default=64, ge=1, description="tokens drawn from for each position")
        coordinates: int = Field(
            default=4, ge=1, description="tokens replaced at once, at first; then ever fewer"
        )
        buffer: int = Field(default=4, ge=1, description="best suffixes kept to go on from")
        margin: float = Field(
            default=0.5, gt=0, description="stop at this share of the clean model's own margin"
        )
        drift_penalty: float = Field(
            default=0.0,
            ge=0,
            description="cost of moving the defended latents by their own norm, in clean margins",
        )

        @property
        def each(self) -> int:
            """Suffixes tried per step that change first in the same place."""
            return max(1, self.candidates // self.length)

    config: Config

    def search(self, problem: Problem) -> TokenSuffix:
        assert isinstance(problem, SuffixProblem)
        config = self.config
        problem = problem.obfuscating(config.drift_penalty, config.margin)
        gaps = problem.gaps()
        allowed = problem.words.allowed_V.nonzero()[:, 0]
        drawn = list(generators(problem.seed, "gcg", problem.examples))
        kept = Buffer.of(_first(problem, gaps, drawn), config.buffer)
        goal_N = config.margin * problem.goal_N
        pieces = _pieces(problem)
        left = kept.begun.nonzero()[:, 0]
        step, steps = 0, config.steps
        while step < steps and left.numel():
            part, here = problem.rows(left), [gaps[n] for n in left.tolist()]
            base_NL, place_N = kept.next(left)
            objective_N, best_NLK, heard = part.promising(base_NL, config.topk)
            kept.learn(left, place_N, objective_N)
            coordinates = _coordinates(config, step / steps)
            each = [drawn[n] for n in left.tolist()]
            best_NLK = _or_any(best_NLK, allowed, each)
            proposed = _proposals(base_NL, best_NLK, each, config, coordinates)
            usable = neighbourly(part.words, here, proposed.flatten(1, 2)).view(proposed.shape[:3])
            ids, tried = _chosen(base_NL, proposed, usable, config)
            found = [
                part.candidates(ids[:, first], first, heard, pieces) for first in range(self.length)
            ]
            found_NT = torch.stack(found, 1).masked_fill(~tried, -torch.inf).flatten(1)
            top = found_NT.topk(min(LOOKED_AT, found_NT.shape[1]))
            top_NTL = ids.flatten(1, 2)[torch.arange(len(left))[:, None], top.indices]
            chosen_N = first_stable(part.words, here, top_NTL, top.values > -torch.inf)
            row = torch.arange(len(left), device=left.device)
            value_N = top.values[row, chosen_N].masked_fill(chosen_N < 0, -torch.inf)
            kept.add(left, top_NTL[row, chosen_N], value_N)
            part.reached(value_N)
            if step == 0:
                steps = problem.affordable(steps)
            step += 1
            left = left[kept.best(left)[1] < goal_N[left]]
        every = torch.arange(problem.size, device=goal_N.device)
        ids_NL, _ = kept.best(every)
        return problem.suffix(ids_NL.masked_fill(~kept.begun[:, None], -1))


@dataclass
class Buffer:
    """The best suffixes of each row."""

    ids: Tensor  # [N, b, L]
    value: Tensor  # their objectives [N, b]
    used: Tensor  # bool [N, b]: gone on from already
    begun: Tensor  # bool [N]: rows that have a first suffix

    @classmethod
    def of(cls, ids_NL: Tensor, size: int) -> Buffer:
        ids = ids_NL.clamp(min=0)[:, None].repeat(1, size, 1)
        value = torch.full(ids.shape[:2], -torch.inf, device=ids.device)
        used = torch.ones_like(value, dtype=torch.bool)
        used[:, 0] = False  # the others are copies of the first one
        return cls(ids, value, used, (ids_NL >= 0).all(1))

    def next(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """The best suffixes that were not gone from yet, or else the very best; their places."""
        value, used = self.value[row], self.used[row]
        passed_over = used & ~used.all(1, keepdim=True)
        # The first suffix has no value yet.
        place = value.clamp(min=-1e30).masked_fill(passed_over, -torch.inf).argmax(1)
        self.used[row, place] = True
        return self.ids[row, place], place

    def learn(self, row: Tensor, place: Tensor, value_N: Tensor) -> None:
        self.value[row, place] = value_N

    def add(self, row: Tensor, ids_NL: Tensor, value_N: Tensor) -> None:
        """Put a suffix in the place of the worst one, if it is better."""
        worst, place = self.value[row].min(1)
        better = value_N > worst
        row, place = row[better], place[better]
        self.ids[row, place], self.value[row, place] = ids_NL[better], value_N[better]
        self.used[row, place] = False

    def best(self, row: Tensor) -> tuple[Tensor, Tensor]:
        value, place = self.value[row].max(1)
        return self.ids[row, place], value


def _coordinates(config: GreedyCoordinateGradient.Config, done: float) -> int:
    """Tokens replaced at once: falls to one in the first half of the search."""
    share = max(0.0, 1 - 2 * done)
    return max(1, min(config.length, round(config.coordinates * share)))


def _first(problem: SuffixProblem, gaps: list[Gap], drawn: list[Generator]) -> Tensor:
    """What each suffix [N, L] begins as: an ordinary token over and over, where that is stable.

    Raises:
        UserError: no suffix is stable in any prompt.
    """
    allowed = problem.words.allowed_V.nonzero()[:, 0].cpu()
    shape = (TRIES, problem.length)
    random = [allowed[torch.randint(len(allowed), shape, generator=g)] for g in drawn]
    plain = torch.tensor(problem.words.ordinary[:TRIES])[:, None].expand(-1, problem.length)
    ids_NTL = torch.stack([torch.cat([plain, ids]) for ids in random]).to(problem.at_N.device)
    chosen_N = first_stable(problem.words, gaps, ids_NTL, neighbourly(problem.words, gaps, ids_NTL))
    if (chosen_N < 0).all():
        raise UserError(
            f"no suffix of {problem.length} tokens of {problem.active.target.name} is tokenised as "
            "it was searched; try another -A length"
        )
    first_NL = ids_NTL[torch.arange(problem.size), chosen_N]
    return first_NL.masked_fill(chosen_N[:, None] < 0, -1)


def _or_any(best_NLK: Tensor, allowed: Tensor, drawn: list[Generator]) -> Tensor:
    """Where no gradient says which tokens are promising, any: the search is then a blind one."""
    best_NLK = best_NLK.clone()
    for n in (best_NLK[:, 0, 0] < 0).nonzero()[:, 0].tolist():
        index = torch.randint(len(allowed), best_NLK.shape[1:], generator=drawn[n])
        best_NLK[n] = allowed[index.to(allowed.device)]
    return best_NLK


def _proposals(
    base_NL: Tensor,
    best_NLK: Tensor,
    drawn: list[Generator],
    config: GreedyCoordinateGradient.Config,
    coordinates: int,
) -> Tensor:
    """Suffixes [N, L, T, L] that differ from the base; those at [:, i] first in token i.

    So many of each that all that begin alike can share what they begin with.
    """
    _, L, K = best_NLK.shape
    T = SPARE * config.each
    shape = (L, T, L)
    pick = torch.stack([torch.randint(K, shape, generator=g) for g in drawn]).to(base_NL.device)
    order = torch.stack([torch.rand(shape, generator=g) for g in drawn]).to(base_NL.device)
    place = torch.arange(L, device=base_NL.device)
    later = place[None, None] > place[:, None, None]
    rank = order.masked_fill(~later, torch.inf).argsort(-1).argsort(-1)
    changed = (later & (rank < coordinates - 1)) | (place[None, None] == place[:, None, None])
    token = best_NLK[:, None, None].expand(-1, L, T, -1, -1).gather(-1, pick[..., None])[..., 0]
    return torch.where(changed, token, base_NL[:, None, None])


def _chosen(
    base_NL: Tensor, proposed: Tensor, usable: Tensor, config: GreedyCoordinateGradient.Config
) -> tuple[Tensor, Tensor]:
    """As many [N, L, B, L] as are tried that are usable and unlike all before; and which are."""
    count = config.each
    weight = torch.arange(1, base_NL.shape[1] + 1, device=base_NL.device) * 2654435761 % 2**31
    key = (proposed * weight).sum(-1)
    own = (base_NL * weight).sum(-1)[:, None, None]
    twice = (key[..., None] == key[..., None, :]).tril(-1).any(-1)
    usable = usable & (key != own) & ~twice
    order = usable.int().argsort(dim=-1, descending=True, stable=True)[..., :count]
    index = order[..., None].expand(-1, -1, -1, proposed.shape[-1])
    return proposed.gather(2, index), usable.gather(2, order)


def _pieces(problem: SuffixProblem) -> Pieces:
    """An accelerator that runs out of memory says so; elsewhere pieces never grow."""
    _, Q, D = problem.start.resid_RQD.shape
    rows = PIECE // (Q * D * problem.batch.rows_per_example)
    on_accelerator = problem.start.resid_RQD.device.type != "cpu"
    return Pieces(rows, 2**20 if on_accelerator else rows)
