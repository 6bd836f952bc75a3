"""What passes between defenses, attacks and tasks: examples, outputs and perturbations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery.sites import Site


@dataclass(frozen=True)
class Example:
    """One item of a task.

    `prompt` holds the token ids, with exactly one BOS where the model uses one. `candidates`
    are the answers to compare, each a tuple of token ids; the first one *is* the behaviour.
    `wrong` is an answer that neither the clean nor the defended model gives, if the task knows
    one. `cluster` names the source item: intervals treat examples of one cluster as dependent.
    """

    id: str
    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    wrong: tuple[int, ...] | None = None
    cluster: str = ""

    def with_candidates(self, *candidates: tuple[int, ...]) -> Example:
        return replace(self, candidates=candidates)

    def with_inserted(self, at: int, ids: Iterable[int]) -> Example:
        """The same with more tokens before the prompt's token `at`, or behind its last one."""
        return replace(self, prompt=(*self.prompt[:at], *ids, *self.prompt[at:]))


@dataclass(frozen=True)
class Output:
    """What one pass of the model shows a task, one entry per example, in float32.

    `scores_EC`: the logit of each candidate at the readout (single-token candidates) or its
    mean log-probability (longer ones); -inf where an example has fewer candidates.
    `logprobs_EV`: next-token log-probabilities at the readout, where they were asked for.
    `pooled_ED`: mean residual over content tokens, for a task that pools (scores are then
    empty). `texts`: greedy continuations, for a task that generates.
    """

    examples: tuple[Example, ...]
    scores_EC: Tensor
    logprobs_EV: Tensor | None = None
    pooled_ED: Tensor | None = None
    texts: tuple[str, ...] | None = None


Run = Callable[[Sequence[Example]], Iterable[Output]]
"""Runs examples and yields their outputs, some at a time and in their order."""


class Perturbation(ABC):
    """What an attack returns, one per example: replayable in a fresh process from its tensors."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Named tensors, an entry per example, ready for a safetensors file."""

    @abstractmethod
    def rows(self, index: Tensor) -> Self:
        """Those of some examples."""

    @abstractmethod
    def norm_E(self) -> Tensor | None:
        """Length [E] of each, or None where there is nothing to measure."""

    @abstractmethod
    def applied(
        self, examples: Sequence[Example]
    ) -> tuple[Sequence[Example], ResidualDelta | None]:
        """What is run in place of the examples: their prompts as perturbed, and a delta on them."""


@dataclass(frozen=True)
class ResidualDelta(Perturbation):
    """Rows added to the residual stream at absolute token positions.

    `values[site]` is float32 [E, P, D]; `positions_EP` holds token indices into each example's
    own prompt (BOS is 0), -1 where an example perturbs fewer positions.
    """

    values: Mapping[Site, Tensor]
    positions_EP: Tensor

    def __post_init__(self) -> None:
        for site, values_EPD in self.values.items():
            if values_EPD.dtype != torch.float32:
                raise TypeError(f"a delta is float32, not {values_EPD.dtype} (site {site})")
            if values_EPD.shape[:2] != self.positions_EP.shape:
                raise ValueError(
                    f"delta {tuple(values_EPD.shape)} at {site} does not fit positions "
                    f"{tuple(self.positions_EP.shape)}"
                )

    def norm_E(self) -> Tensor:
        """Frobenius norm per example, over sites and positions."""
        squares = [values.flatten(1).square().sum(1) for values in self.values.values()]
        return torch.stack(squares).sum(0).sqrt()

    def rows(self, index: Tensor) -> Self:
        values = {site: values[index] for site, values in self.values.items()}
        return replace(self, values=values, positions_EP=self.positions_EP[index])

    def applied(
        self, examples: Sequence[Example]
    ) -> tuple[Sequence[Example], ResidualDelta | None]:
        return examples, self

    def tensors(self) -> dict[str, Tensor]:
        named = {f"delta/{site}": v.detach().cpu() for site, v in self.values.items()}
        return {**named, "positions": self.positions_EP.cpu()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ResidualDelta:
        values = {
            Site.parse(name.removeprefix("delta/")): tensor
            for name, tensor in tensors.items()
            if name.startswith("delta/")
        }
        return cls(values, tensors["positions"])


@dataclass(frozen=True)
class TokenSuffix(Perturbation):
    """Tokens that stand in each prompt before its token `at_E`.

    `ids_EL` is int64, with -1 behind a shorter suffix; `texts` are what they say. It is the text
    that counts: tokenised inside the whole prompt, it gives exactly these ids.
    """

    ids_EL: Tensor
    at_E: Tensor
    texts: tuple[str, ...]

    def norm_E(self) -> None:
        return None

    def rows(self, index: Tensor) -> Self:
        texts = tuple(self.texts[i] for i in index.tolist())
        return replace(self, ids_EL=self.ids_EL[index], at_E=self.at_E[index], texts=texts)

    def applied(self, examples: Sequence[Example]) -> tuple[Sequence[Example], None]:
        parts = zip(examples, self.at_E.tolist(), self.ids_EL.tolist(), strict=True)
        return [e.with_inserted(at, [i for i in ids if i >= 0]) for e, at, ids in parts], None

    def tensors(self) -> dict[str, Tensor]:
        said = [
            torch.frombuffer(bytearray(t.encode() + b"\0"), dtype=torch.uint8) for t in self.texts
        ]
        return {
            "suffix/ids": self.ids_EL.cpu(),
            "suffix/at": self.at_E.cpu(),
            "suffix/utf8": pad_sequence(said, batch_first=True),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TokenSuffix:
        texts = [bytes(row).rstrip(b"\0").decode() for row in tensors["suffix/utf8"].tolist()]
        return cls(tensors["suffix/ids"], tensors["suffix/at"], tuple(texts))


@dataclass(frozen=True)
class SoftSuffix(ResidualDelta):
    """A suffix of free embeddings: one `token`, as often as there are positions, displaced.

    `positions_EP` are those of the suffix in the prompt that holds it, and the displacements
    `values` are added where the model's blocks begin (`blocks.0.hook_resid_pre`), behind whatever
    it does to embeddings.
    """

    token: int = 0

    def applied(self, examples: Sequence[Example]) -> tuple[Sequence[Example], ResidualDelta]:
        suffix = [self.token] * self.positions_EP.shape[1]
        starts = self.positions_EP[:, 0].tolist()
        return [e.with_inserted(at, suffix) for e, at in zip(examples, starts, strict=True)], self

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "token": torch.full((len(self.positions_EP),), self.token)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SoftSuffix:
        plain = ResidualDelta.from_tensors(tensors)
        return cls(plain.values, plain.positions_EP, int(tensors["token"][0]))
