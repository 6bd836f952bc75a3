"""`gcg`: a suffix of tokens found by greedy coordinate gradient, scored as the string it spells.

Greedy coordinate gradient (arXiv 2307.15043) under the active defense, with what its successors
added: several coordinates a step at first (arXiv 2405.21018), a buffer of the best suffixes to go
on from (arXiv 2404.02151 and nanoGCG), and many candidates of which few are scored in full (as
with the small models of arXiv 2403.01251; here by part of the vocabulary, see
`replacements.evaluated`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from saebench_recovery.attacks._suffix import SuffixAttack
from torch import Generator, Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.replacements import (
    FINALISTS,
    batches_for,
    evaluated,
    noted,
    proposed,
)
from saebench_recovery.perturbations.retokenise import (
    Gap,
    Vocabulary,
    first_stable,
    stable_neighbours,
)
from saebench_recovery.perturbations.suffix_tokens import TRIES, SuffixTokens, TokenSuffix
from saebench_recovery.registry import register_attack

SPARE = 2  # replacements drawn for each that is tried: some are unstable or drawn twice
FIRST = 4  # beginnings of a suffix that are looked at together
BATCH = 2**21  # residual numbers of candidates that run at once


@register_attack("gcg")
class GreedyCoordinateGradient(SuffixAttack):
    """Replaces tokens of the suffix by those that the gradient proposes and a pass confirms."""

    space = "tokens"

    class Config(SuffixAttack.Config):
        steps: int = Field(default=16, ge=1, le=10_000, description="rounds of each start, at most")
        candidates: int = Field(
            default=16, ge=1, le=4096, description="suffixes tried per step, about"
        )
        topk: int = Field(
            default=64, ge=1, le=65_536, description="tokens drawn from for each position"
        )
        coordinates: int = Field(
            default=4, ge=1, description="tokens replaced at once, at first; then ever fewer"
        )
        buffer: int = Field(
            default=4, ge=1, le=1024, description="best suffixes kept to go on from"
        )
        margin: float = Field(
            default=0.5, gt=0, description="stop at this share of the clean model's own margin"
        )

        @property
        def each(self) -> int:
            """Suffixes tried per step that change first in the same place."""
            return max(1, self.candidates // self.length)

    config: Config

    def search(self, problem: Problem) -> TokenSuffix:
        config, space = self.config, SuffixTokens.of(problem)
        problem = space.penalised(problem, config.drift_penalty, config.margin)
        ids_NL, value_N = self._searched(problem, 0)
        if (ids_NL < 0).all():
            raise UserError(
                f"no suffix of {space.length} tokens of {space.words.target.name} is tokenised as "
                "it was searched; try another -A length"
            )
        for number in self.restarts(problem):
            left = (value_N < config.margin * problem.goal_N).nonzero()[:, 0]
            if left.numel() == 0:
                break
            other_NL, reached_N = self._searched(problem.rows(left), number)
            better_N = reached_N > value_N[left]
            ids_NL[left[better_N]] = other_NL[better_N]
            value_N[left[better_N]] = reached_N[better_N]
        return space.suffix(ids_NL)

    def _searched(self, problem: Problem, number: int) -> tuple[Tensor, Tensor]:
        """The best suffixes [N, L] of one start and their objectives; -1, -inf where none is."""
        config, space = self.config, SuffixTokens.of(problem)
        goal_N = config.margin * problem.goal_N
        gaps = space.gaps()
        drawn = problem.generators(f"gcg {number}" if number else "gcg")
        kept = Buffer.of(_first(space, gaps, drawn, ordinary=number == 0), config.buffer)
        batches = batches_for(problem, BATCH)
        left = kept.begun.nonzero()[:, 0]
        step, steps = 0, config.steps
        while step < steps and left.numel():
            part = problem.rows(left)
            here, each = [gaps[n] for n in left.tolist()], [drawn[n] for n in left.tolist()]
            base_NL, place_N = kept.next(left)
            objective_N, best_NLK, recorded = proposed(part, base_NL, config.topk)
            kept.learn(left, place_N, objective_N)
            candidates = self._candidates(space, here, base_NL, best_NLK, each, step / steps)
            value_NLB = evaluated(
                part, base_NL, candidates.ids, candidates.tried, recorded, batches
            )
            ids_NL, value_N = candidates.best(value_NLB, space.words, here)
            kept.add(left, ids_NL, value_N)
            noted(part, value_N)
            if step == 0:
                steps = problem.affordable(steps)
            step += 1
            left = left[kept.best(left)[1] < goal_N[left]]
        ids_NL, value_N = kept.best(torch.arange(problem.size, device=goal_N.device))
        none_N = ~kept.begun
        return ids_NL.masked_fill(none_N[:, None], -1), value_N.masked_fill(none_N, -torch.inf)

    def _candidates(
        self,
        space: SuffixTokens,
        gaps: list[Gap],
        base_NL: Tensor,
        best_NLK: Tensor,
        drawn: list[Generator],
        done: float,
    ) -> Candidates:
        """Suffixes to try in the place of the base, after a share `done` of the steps."""
        allowed = space.words.allowed_V.nonzero()[:, 0]
        best_NLK = _or_any(best_NLK, allowed, drawn)
        drawn_NLTL = _proposals(
            base_NL, best_NLK, drawn, self.config, _coordinates(self.config, done)
        )
        usable = stable_neighbours(space.words, gaps, drawn_NLTL.flatten(1, 2))
        ids, tried = _chosen(base_NL, drawn_NLTL, usable.view(drawn_NLTL.shape[:3]), self.config)
        return Candidates(ids, tried)


@dataclass(frozen=True)
class Candidates:
    """Suffixes [N, L, B, L], those at [:, i] changed first in token i; which [N, L, B] to try."""

    ids: Tensor
    tried: Tensor

    def best(self, value_NLB: Tensor, words: Vocabulary, gaps: list[Gap]) -> tuple[Tensor, Tensor]:
        """The best suffix [N, L] of each row that is stable, and its value; -inf if none is."""
        value_NT = value_NLB.flatten(1)
        top = value_NT.topk(min(FINALISTS, value_NT.shape[1]))
        row = torch.arange(len(value_NT), device=value_NT.device)
        top_NTL = self.ids.flatten(1, 2)[row[:, None], top.indices]
        chosen_N = first_stable(words, gaps, top_NTL, top.values > -torch.inf)
        value_N = top.values[row, chosen_N].masked_fill(chosen_N < 0, -torch.inf)
        return top_NTL[row, chosen_N], value_N


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


def _first(
    space: SuffixTokens, gaps: list[Gap], drawn: list[Generator], *, ordinary: bool
) -> Tensor:
    """What each suffix [N, L] begins as, where that is stable; -1 where nothing is.

    An `ordinary` token over and over before random ones, or these before that.
    """
    allowed = space.words.allowed_V.nonzero()[:, 0].cpu()
    shape = (TRIES, space.length)
    random = [allowed[torch.randint(len(allowed), shape, generator=g)] for g in drawn]
    plain = torch.tensor(space.words.ordinary[:TRIES])[:, None].expand(-1, space.length)
    pairs = [(plain, ids) if ordinary else (ids, plain) for ids in random]
    ids_NTL = torch.stack([torch.cat(pair) for pair in pairs]).to(space.positions_NP.device)
    first_NL = torch.full_like(ids_NTL[:, 0], -1)
    left = torch.arange(space.size, device=ids_NTL.device)
    # Most rows take one of the first few, and to look at all would tokenise thousands of pairs.
    for some_NTL in ids_NTL.split(FIRST, 1):  # type: ignore[no-untyped-call]
        some_NTL, here = some_NTL[left], [gaps[n] for n in left.tolist()]
        usable_NT = stable_neighbours(space.words, here, some_NTL)
        chosen_N = first_stable(space.words, here, some_NTL, usable_NT)
        found = chosen_N >= 0
        first_NL[left[found]] = some_NTL[found, chosen_N[found]]
        left = left[~found]
        if left.numel() == 0:
            break
    return first_NL


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
