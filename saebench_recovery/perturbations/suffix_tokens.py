"""The space of token suffixes: searched as ids, scored as the string that they spell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.model.examples import Example
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.perturbations.engine import Engine
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.retokenise import (
    Gap,
    Vocabulary,
    first_stable,
    retokenised,
    stable_neighbours,
    vocabulary,
)
from saebench_recovery.perturbations.space import Draw, Posing, Reach, Space, checked_shape
from saebench_recovery.perturbations.suffix import (
    EMBEDDED,
    SuffixLayout,
    lay_out_suffix,
    penalised,
)
from saebench_recovery.perturbations.windows import lay_out

TRIES = 64  # random suffixes drawn for each prompt


@dataclass(frozen=True)
class TokenSuffix(Perturbation):
    """Tokens that stand in each prompt before its token `at_E`.

    `ids_EL` is int64, with -1 behind a shorter suffix; `texts` are what they say. It is the text
    that counts: tokenised inside the whole prompt, it gives exactly these ids.
    """

    kind: ClassVar[str] = "tokens"

    ids_EL: Tensor
    at_E: Tensor
    texts: tuple[str, ...]

    def present_E(self) -> Tensor:
        return ~(self.ids_EL < 0).all(1)

    def rows(self, index: Tensor) -> Self:
        texts = tuple(self.texts[i] for i in index.tolist())
        return replace(self, ids_EL=self.ids_EL[index], at_E=self.at_E[index], texts=texts)

    def applied(self, examples: Sequence[Example]) -> tuple[Sequence[Example], None]:
        parts = zip(examples, self.at_E.tolist(), self.ids_EL.tolist(), strict=True)
        return [e.with_inserted(at, [i for i in ids if i >= 0]) for e, at, ids in parts], None

    def inserted_at_E(self) -> Tensor:
        return self.at_E

    def tensors(self) -> dict[str, Tensor]:
        encoded = [
            torch.frombuffer(bytearray(t.encode() + b"\0"), dtype=torch.uint8) for t in self.texts
        ]
        return {
            "suffix/ids": self.ids_EL.cpu(),
            "suffix/at": self.at_E.cpu(),
            "suffix/utf8": pad_sequence(encoded, batch_first=True),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        texts = [bytes(row).rstrip(b"\0").decode() for row in tensors["suffix/utf8"].tolist()]
        return cls(tensors["suffix/ids"], tensors["suffix/at"], tuple(texts))


@dataclass(frozen=True)
class SuffixTokens(Space):
    """Suffixes of at most `positions_NP.shape[1]` tokens; their number is all that limits them."""

    kind: ClassVar[str] = "tokens"
    has_norm: ClassVar[bool] = False

    positions_NP: Tensor
    layout: SuffixLayout
    words: Vocabulary
    width: int

    @classmethod
    def pose(cls, reach: Reach, posing: Posing) -> Problem:
        windows, layout = lay_out_suffix(posing, reach.length)
        words = vocabulary(posing.active.target)
        space = cls(windows.positions_NP, layout, words, windows.engine.width)
        return windows.problem(space, layout.plain)

    def penalised(self, problem: Problem, weight: float, margin: float) -> Problem:
        """The problem with a penalty on drift; see `suffix.penalised`."""
        return penalised(problem, self.layout, weight, margin)

    @property
    def length(self) -> int:
        return self.positions_NP.shape[1]

    def gaps(self) -> list[Gap]:
        """The places of the suffixes in the prompts' strings.

        Raises:
            UserError: a prompt does not survive decoding and tokenising again.
        """
        places = list(zip(self.layout.plain, self.layout.at_N.tolist(), strict=True))
        known: dict[tuple[tuple[int, ...], int], Gap] = {}
        for example, at in places:
            known.setdefault((example.prompt, at), Gap(self.words, example, at))
        return [known[example.prompt, at] for example, at in places]

    def suffix(self, ids_NL: Tensor) -> TokenSuffix:
        """Suffixes of tokens, with what they say; -1 stands for none."""
        ids = [[i for i in row if i >= 0] for row in ids_NL.tolist()]
        texts = [gap.text(row) for gap, row in zip(self.gaps(), ids, strict=True)]
        return TokenSuffix(ids_NL, self.layout.at_N, tuple(texts))

    def zeros(self) -> ResidualDelta:
        N, P = self.positions_NP.shape
        empty = torch.zeros(N, P, self.width, device=self.positions_NP.device)
        return ResidualDelta({EMBEDDED: empty}, self.positions_NP)

    def nothing(self) -> TokenSuffix:
        none_N0 = self.positions_NP[:, :0]
        return TokenSuffix(none_N0, self.layout.at_N, ("",) * self.size)

    def random(self, draw: Draw, budget_N: Tensor, like: Perturbation | None) -> TokenSuffix:
        """Random printing tokens, as many as there is place for, that are stable in each prompt.

        No suffix where none of `TRIES` is.
        """
        gaps = self.gaps()
        allowed = self.words.allowed_V.nonzero()[:, 0].cpu()
        drawn = [
            allowed[torch.randint(len(allowed), (TRIES, self.length), generator=generator)]
            for generator in draw("")
        ]
        ids_NTL = torch.stack(drawn).to(self.positions_NP.device)
        usable_NT = stable_neighbours(self.words, gaps, ids_NTL)
        chosen_N = first_stable(self.words, gaps, ids_NTL, usable_NT)
        picked_NL = ids_NTL[torch.arange(self.size), chosen_N]
        return self.suffix(picked_NL.masked_fill(chosen_N[:, None] < 0, -1))

    def admit(self, perturbation: Perturbation, budget_N: Tensor) -> TokenSuffix:
        """Tokenise a suffix's text inside the whole prompt.

        What does not come back as a suffix of at most the allowed length is no suffix, nor is
        text that spells a BOS: no prompt has a second one.
        """
        perturbation = checked_shape(perturbation, TokenSuffix)
        at_N = self.layout.at_N
        if not torch.equal(perturbation.at_E, at_N) or len(perturbation.texts) != self.size:
            raise ValueError("the attack puts its suffixes in other places than the problem's")
        tokenised = retokenised(self.words, self.gaps(), perturbation.texts)
        bos = self.words.target.tokenizer.bos_token_id
        kept = [
            () if ids is None or len(ids) > self.length or bos in ids else ids for ids in tokenised
        ]
        ids_NL = torch.full_like(self.positions_NP, -1)
        for n, ids in enumerate(kept):
            ids_NL[n, : len(ids)] = torch.tensor(ids)
        pairs = zip(perturbation.texts, kept, strict=True)
        return TokenSuffix(ids_NL, at_N, tuple(text if ids else "" for text, ids in pairs))

    def view(
        self, engine: Engine, perturbation: Perturbation
    ) -> tuple[Engine, ResidualDelta | None]:
        perturbation = checked_shape(perturbation, TokenSuffix)
        return view_tokens(engine, perturbation, self.layout)

    def copied(self) -> Self:
        layout = replace(self.layout, at_N=self.layout.at_N.clone())
        return replace(super().copied(), layout=layout)

    def rows(self, index: Tensor) -> Self:
        layout = self.layout.rows(index)
        return replace(self, positions_NP=self.positions_NP[index], layout=layout)


def view_tokens(
    engine: Engine, suffix: TokenSuffix, layout: SuffixLayout
) -> tuple[Engine, ResidualDelta | None]:
    """The windows that hold these suffixes, whatever their length."""
    ids_NL = suffix.ids_EL
    if ids_NL.shape[1] == layout.length and bool((ids_NL >= 0).all()):
        return with_tokens(engine, ids_NL), None
    return whole_prompts(engine, suffix.applied(layout.plain)[0]), None


def whole_prompts(engine: Engine, examples: Sequence[Example]) -> Engine:
    """Prompts of any length, laid out anew."""
    readout_N1 = torch.tensor([[len(example.prompt) - 1] for example in examples])
    none_N1 = torch.zeros(engine.size, 1)
    posing = Posing(
        engine.active,
        engine.task,
        [[example] for example in examples],
        none_N1,
        "absolute",
        {},
        none_N1[:, 0],
        seed=0,
        meter=engine.meter,
        drift_rule=engine.drift_rule,
    )
    return lay_out(posing, readout_N1, [EMBEDDED]).engine


def with_tokens(engine: Engine, ids_NL: Tensor) -> Engine:
    """The same windows with a suffix of tokens, all of which run from the tokens."""
    start = replace(engine.start, at_tokens=True)
    return replace(engine, batch=engine.batch.with_first_tokens(ids_NL), start=start)
