"""What a suffix attack is handed: valid flips whose prompts hold a suffix under an active defense.

The suffix stands where the task says, tokens behind it move on, and the defense is active on it as
everywhere. What comes before it is cached once; a pass runs the suffix and what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.seeds import generators
from saebench_recovery.base.sites import Site
from saebench_recovery.model.adaptive_batches import Pieces
from saebench_recovery.model.attention import FrozenPrefix
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.examples import Example
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.roles import Judge
from saebench_recovery.perturbations.build import build
from saebench_recovery.perturbations.obfuscation import Shadow, shadow
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.retokenise import (
    Gap,
    Vocabulary,
    first_stable,
    neighbourly,
    retokenised,
    vocabulary,
)
from saebench_recovery.perturbations.suffixes import SoftSuffix, TokenSuffix

EMBEDDED = Site(0, "hook_resid_pre")
TRIES = 64  # random suffixes drawn for each prompt


@dataclass(frozen=True, kw_only=True)
class SuffixProblem(Problem):
    """N examples to recover with a suffix, each of `positions_NP.shape[1]` tokens.

    In its windows stands `token`, over and over; a `SoftSuffix` displaces its embeddings, and
    `saying` puts other tokens there. `plain` are the examples without it, and `at_N` the tokens
    that it stands before. Budgets are relative to the norm of the embeddings (with their
    positions) that are displaced; tokens have no budget but their number.
    """

    kind: Literal["tokens", "embeddings"]
    plain: tuple[Example, ...]
    at_N: Tensor
    token: int
    shadow: Shadow | None = None

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.plain

    @property
    def length(self) -> int:
        return self.positions_NP.shape[1]

    @property
    def words(self) -> Vocabulary:
        return vocabulary(self.active.target)

    def gaps(self) -> list[Gap]:
        """The places of the suffixes in the prompts' strings.

        Raises:
            UserError: a prompt does not survive decoding and tokenising again.
        """
        places = zip(self.plain, self.at_N.tolist(), strict=True)
        made: dict[tuple[tuple[int, ...], int], Gap] = {}
        for example, at in places:
            made.setdefault((example.prompt, at), Gap(self.words, example, at))
        return [made[e.prompt, at] for e, at in zip(self.plain, self.at_N.tolist(), strict=True)]

    def zeros(self) -> SoftSuffix:
        bare = super().zeros()
        return SoftSuffix(bare.values, bare.positions_EP, self.token)

    def nothing(self) -> TokenSuffix:
        none_N0 = self.positions_NP[:, :0]
        return TokenSuffix(none_N0, self.at_N, ("",) * self.size)

    def suffix(self, ids_NL: Tensor) -> TokenSuffix:
        """Suffixes of tokens, with what they say; -1 stands for none."""
        ids = [[i for i in row if i >= 0] for row in ids_NL.tolist()]
        texts = [gap.text(row) for gap, row in zip(self.gaps(), ids, strict=True)]
        return TokenSuffix(ids_NL, self.at_N, tuple(texts))

    def saying(self, ids_NL: Tensor) -> Self:
        """The same problem with a suffix of tokens, all of whose windows run from the tokens."""
        start = replace(self.start, at_tokens=True)
        return replace(self, batch=self.batch.saying(ids_NL), start=start)

    def rows(self, index: Tensor) -> Self:
        plain = tuple(self.plain[i] for i in index.tolist())
        held = self.shadow and self.shadow.rows(index)
        return replace(super().rows(index), plain=plain, at_N=self.at_N[index], shadow=held)

    def obfuscating(self, weight: float, margin: float) -> Self:
        """The same problem with a penalty on the drift of the defended latents; see `shadow`."""
        return replace(self, shadow=shadow(self, weight, margin)) if weight else self

    def promising(self, ids_NL: Tensor, count: int) -> tuple[Tensor, Tensor, FrozenPrefix]:
        """What the gradient at a suffix of tokens says of replacing each.

        The objective [N] there; for each position the `count` allowed tokens [N, L, count] that
        raise it most to first order, or -1 where no gradient comes through; and the pass's keys
        and values, for `candidates`.
        """
        heard = self.start.prefix.listening()
        said = self.saying(ids_NL)
        said = replace(said, start=replace(said.start, prefix=heard))
        bare = said.zeros().values[EMBEDDED]
        weight_VD, allowed_V = self.active.target.embedding.weight, self.words.allowed_V

        def work() -> tuple[Tensor, Tensor]:
            leaf_NLD = bare.requires_grad_()
            with torch.enable_grad():
                delta = ResidualDelta({EMBEDDED: leaf_NLD}, said.positions_NP)
                objective_N = said.differentiable(delta)
                (grad_NLD,) = torch.autograd.grad(objective_N.sum(), leaf_NLD)
            best = [
                (grad_LD.to(weight_VD.dtype) @ weight_VD.T)
                .masked_fill(~allowed_V, -torch.inf)
                .topk(min(count, int(allowed_V.sum())))
                .indices
                for grad_LD in grad_NLD  # [N, L, V] at once would be most of the memory
            ]
            blind_N = grad_NLD.flatten(1).abs().amax(1) == 0
            best_NLK = torch.stack(best).masked_fill(blind_N[:, None, None], -1)
            return objective_N.detach(), best_NLK

        objective_N, best_NLK = said.tail_pass(work, backward=True, logits="one-hot")
        return self.reached(objective_N), best_NLK, heard

    @torch.no_grad()
    def candidates(
        self, ids_NBL: Tensor, first: int, heard: FrozenPrefix, pieces: Pieces
    ) -> Tensor:
        """Objective [N, B] of suffixes that agree before token `first` with the one heard.

        The rows of one example share the prompt's keys and values and those of that beginning.
        """
        count = 0 if self.task.pool is not None else first  # a mean needs all that it is over
        N, B, L = ids_NBL.shape
        part = self.metered(self.meter)._behind(count, heard)
        said_RK = ids_NBL[:, :, count:].reshape(N * B, L - count)

        def work(row: Tensor) -> Tensor:
            index = row.to(said_RK.device)
            here = part.rows(index // B).saying(said_RK[index])
            return here.tail_pass(lambda: here.differentiable(None), backward=False)

        return self._booked(lambda: pieces.over(N * B, B, work)).view(N, B)

    def _behind(self, count: int, heard: FrozenPrefix) -> Self:
        """The same problem, its windows without the suffix's first tokens: those are cached."""
        if count == 0:
            return self
        prefix = self.start.prefix.extended(heard, count, self.batch.rows_per_example)
        mask_NP = self.start.prefix_mask_EP.repeat_interleave(self.variants, 0)
        mask_NP = torch.nn.functional.pad(mask_NP, (0, count), value=True)
        return replace(
            self,
            batch=self.batch.after(count),
            start=replace(self.start, prefix=prefix, prefix_mask_EP=mask_NP, at_tokens=True),
            positions_NP=self.positions_NP[:, count:],
            shadow=self.shadow and self.shadow.after(count),
        )

    def admit(self, perturbation: Perturbation, *, constrained: bool) -> Perturbation:
        """Clip displacements to the budget; tokenise a suffix's text inside the whole prompt.

        What does not come back as a suffix of at most the allowed length is no suffix, nor is
        text that spells a BOS: no prompt has a second one.

        Raises:
            TypeError: the attack does not return the kind of suffix that it declares.
            ValueError: a suffix of another place or number than the problem's.
        """
        wanted = {"tokens": TokenSuffix, "embeddings": SoftSuffix}[self.kind]
        if not isinstance(perturbation, wanted):
            raise TypeError(
                f"a suffix of {self.kind} is a {wanted.__name__}, not {perturbation!r:.80}"
            )
        if not isinstance(perturbation, TokenSuffix):
            return super().admit(perturbation, constrained=constrained)
        if not torch.equal(perturbation.at_E, self.at_N) or len(perturbation.texts) != self.size:
            raise ValueError("the attack puts its suffixes in other places than the problem's")
        found = retokenised(self.words, self.gaps(), perturbation.texts)
        bos = self.active.target.tokenizer.bos_token_id
        kept = [() if ids is None or len(ids) > self.length or bos in ids else ids for ids in found]
        ids_NL = torch.full_like(self.positions_NP, -1)
        for n, ids in enumerate(kept):
            ids_NL[n, : len(ids)] = torch.tensor(ids)
        pairs = zip(perturbation.texts, kept, strict=True)
        return TokenSuffix(ids_NL, self.at_N, tuple(text if ids else "" for text, ids in pairs))

    def differentiable(self, delta: ResidualDelta | None, trace: Trace | None = None) -> Tensor:
        if self.shadow is None:
            return super().differentiable(delta, trace)
        seen = trace or Trace()
        return self.shadow.penalised(super().differentiable(delta, seen), seen)

    def _resolved(self, perturbation: Perturbation) -> tuple[Problem, ResidualDelta]:
        if not isinstance(perturbation, TokenSuffix):
            return super()._resolved(perturbation)
        ids_NL = perturbation.ids_EL
        if ids_NL.shape == self.positions_NP.shape and bool((ids_NL >= 0).all()):
            return self.saying(ids_NL), self.zeros()
        # Of another length: the prompts are laid out anew.
        examples, _ = perturbation.applied(self.plain)
        readout_N1 = torch.tensor([[len(example.prompt) - 1] for example in examples])
        none_N1 = torch.zeros(self.size, 1)
        whole = build(
            self.active,
            self.task,
            [[example] for example in examples],
            readout_N1,
            [EMBEDDED],
            none_N1,
            none_N1[:, 0],
            self.seed,
            self.meter,
        )
        return whole, whole.zeros()


def build_suffix(
    kind: Literal["tokens", "embeddings"],
    length: int,
    active: DefendedModel,
    task: Judge,
    examples: Sequence[Sequence[Example]],
    budget_EV: Tensor,
    *more: Any,
) -> SuffixProblem:
    """A problem with a suffix of `length` tokens in each of E prompts; see `build` for the rest.

    Raises:
        UserError: a prompt with its suffix and answer is longer than the model's context.
    """
    target = active.target
    words = vocabulary(target)
    token = words.ordinary[0]
    at = [task.insertion(group[0]) for group in examples]
    _check_context(target.model.config, task, [e for group in examples for e in group], length)
    longer = [
        [example.with_inserted(a, [token] * length) for example in group]
        for group, a in zip(examples, at, strict=True)
    ]
    # A suffix is part of the prompt: it comes before any defense, whatever the threat model.
    made = build(
        replace(active, threat_model="reclamp"),
        task,
        longer,
        torch.tensor(at)[:, None] + torch.arange(length),
        [EMBEDDED],
        budget_EV,
        *more,
    )
    return SuffixProblem(
        **{field.name: getattr(made, field.name) for field in fields(made)},
        kind=kind,
        plain=tuple(example for group in examples for example in group),
        at_N=made.positions_NP[:, 0].clone(),
        token=token,
    )


def random_suffix(problem: SuffixProblem, label: str) -> TokenSuffix:
    """Random printing tokens, as many as the problem's suffix, that are stable in each prompt.

    No suffix where none of `TRIES` is.
    """
    words, gaps = problem.words, problem.gaps()
    allowed = words.allowed_V.nonzero()[:, 0].cpu()
    drawn = [
        allowed[torch.randint(len(allowed), (TRIES, problem.length), generator=generator)]
        for generator in generators(problem.seed, label, problem.examples)
    ]
    ids_NTL = torch.stack(drawn).to(problem.at_N.device)
    chosen_N = first_stable(words, gaps, ids_NTL, neighbourly(words, gaps, ids_NTL))
    picked_NL = ids_NTL[torch.arange(problem.size), chosen_N]
    return problem.suffix(picked_NL.masked_fill(chosen_N[:, None] < 0, -1))


def _check_context(config: Any, task: Judge, examples: Sequence[Example], length: int) -> None:
    context: int = config.max_position_embeddings
    for example in examples:
        answer = max(task.new_tokens, *(len(c) for c in example.candidates))
        if len(example.prompt) + length + answer > context:
            raise UserError(
                f"a suffix of {length} tokens does not fit: the prompt of {example.id!r} has "
                f"{len(example.prompt)} and its answer up to {answer}, and the model reads "
                f"{context}; try a shorter one (-A length=...)"
            )
