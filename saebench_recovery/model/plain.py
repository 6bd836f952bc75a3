"""The reference engine: whatever a result says can be recomputed here, slowly.

One prompt at a time, the whole model from the tokens, with transformers' eager attention and no
cache. It shares no code with the engine that searches and scores, so that an error in one of them
cannot hide in the other. The defense under test is called as it is: that is what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from saebench_recovery.base.sites import Site
from saebench_recovery.model.examples import Example, Output
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.model.plain_hooks import replaced
from saebench_recovery.model.weights import WeightChange, matrices
from saebench_recovery.spec import ThreatModel


class Intervention(Protocol):
    """What is asked of a fitted defense; see `interfaces.Defense`."""

    latents: Mapping[Site, Any]

    @property
    def config(self) -> Any: ...

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Conditions:
    """What holds at every token of a pass: a defense, and one example's perturbation.

    Under `reclamp` the perturbation is added before the defense intervenes at the same site, under
    `post` after it.
    """

    defense: Intervention | None = None
    delta: ResidualDelta | None = None
    threat_model: ThreatModel = "reclamp"
    weights: WeightChange | None = None

    def __post_init__(self) -> None:
        if self.delta is not None and len(self.delta.positions_EP) != 1:
            raise ValueError(f"a delta of one example, not of {len(self.delta.positions_EP)}")

    @property
    def sites(self) -> set[Site]:
        """Hook points at which something happens."""
        defended = () if self.defense is None else self.defense.latents
        perturbed = () if self.delta is None else self.delta.values
        return {*defended, *perturbed}

    def added(self, site: Site, resid_TD: Tensor) -> Tensor:
        """The perturbation [T, D] at a site: zero where nothing is added."""
        added_TD = torch.zeros_like(resid_TD)
        if self.delta is not None and site in self.delta.values:
            (positions,), (rows_PD,) = self.delta.positions_EP.tolist(), self.delta.values[site]
            for position, row_D in zip(positions, rows_PD, strict=True):
                if 0 <= position < len(added_TD):
                    added_TD[position] = row_D
        return added_TD


UNDISTURBED = Conditions()


@dataclass
class Pass:
    """One pass over a row of tokens, float32: logits, and the residual stream at some sites.

    `before` [T, D] is what enters the defense there, with the perturbation if that comes first;
    `after` [T, D] is what leaves, with the perturbation in any case.
    """

    logits_TV: Tensor = field(default_factory=lambda: torch.empty(0))
    before: dict[Site, Tensor] = field(default_factory=dict)
    after: dict[Site, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PlainModel:
    """A model of its own with eager attention, its tokenizer, and SAEs as SAELens has them.

    The first position is no content, and neither is a BOS or padding wherever it stands: a defense
    spares them unless its configuration says `include_bos`.
    """

    model: Any
    tokenizer: Any
    saes: Mapping[Site, Any]

    def __post_init__(self) -> None:
        found = self.model.config._attn_implementation
        if found != "eager":
            raise ValueError(f"the reference engine runs eager attention, and this is {found!r}")

    def run(
        self,
        tokens: tuple[int, ...],
        conditions: Conditions = UNDISTURBED,
        watch: tuple[Site, ...] = (),
    ) -> Pass:
        """Run the whole model on one row of tokens; differentiable by a perturbation's values.

        The residual is seen at the sites in `watch`, and wherever something happens to it.
        """
        found = Pass()
        hooks = {
            site: partial(self._replace, site, conditions, found, self._content(tokens))
            for site in {*conditions.sites, *watch}
        }
        ids_1T = torch.tensor([tokens], device=self.model.get_input_embeddings().weight.device)
        with reweighted(self.model, conditions.weights), replaced(self.model, hooks):
            found.logits_TV = self.model(input_ids=ids_1T, use_cache=False).logits[0].float()
        return found

    def _content(self, tokens: tuple[int, ...]) -> list[int]:
        """Positions that carry text."""
        named = ("bos_token_id", "cls_token_id", "pad_token_id")
        others = {getattr(self.tokenizer, name, None) for name in named}
        return [i for i, token in enumerate(tokens) if i and token not in others]

    def _replace(
        self,
        site: Site,
        conditions: Conditions,
        found: Pass,
        content: list[int],
        resid_1TD: Tensor,
    ) -> Tensor:
        before_TD = resid_1TD[0].float()
        added_TD = conditions.added(site, before_TD)
        if conditions.threat_model == "reclamp":
            before_TD = before_TD + added_TD
        after_TD = self._defended(site, conditions.defense, content, before_TD)
        if conditions.threat_model == "post":
            after_TD = after_TD + added_TD
        found.before[site], found.after[site] = before_TD, after_TD
        return after_TD[None].to(resid_1TD.dtype)

    def _defended(
        self, site: Site, defense: Intervention | None, content: list[int], resid_TD: Tensor
    ) -> Tensor:
        if defense is None or site not in defense.latents:
            return resid_TD
        changed_TD = defense.intervene(site, resid_TD[None])[0]
        if defense.config.include_bos:
            return changed_TD
        spared = torch.ones(len(resid_TD), 1, dtype=torch.bool, device=resid_TD.device)
        spared[content] = False
        return torch.where(spared, resid_TD, changed_TD)

    def output(
        self,
        example: Example,
        conditions: Conditions = UNDISTURBED,
        *,
        pool: Site | None = None,
        new_tokens: int = 0,
    ) -> Output:
        """What a task is shown of one example: scores, distribution at the readout, texts.

        With `pool`, the mean residual [1, D] over content tokens there instead of scores. With
        `new_tokens`, also what the model writes.
        """
        texts = None
        if new_tokens:
            written = self.continued(example.prompt, new_tokens, conditions)
            texts = (self.tokenizer.decode(written, skip_special_tokens=True),)
        if pool is not None:
            resid_TD = self.run(example.prompt, conditions, (pool,)).after[pool]
            pooled_1D = resid_TD[self._content(example.prompt)].mean(0)[None]
            return Output((example,), pooled_1D[:, :0], pooled_ED=pooled_1D, texts=texts)
        readout_V = self.run(example.prompt, conditions).logits_TV[-1]
        scores_C = readout_V[[answer[0] for answer in example.candidates]]
        if teacher_forced(example):
            each = [self._log_likelihood(example, a, conditions) for a in example.candidates]
            scores_C = torch.stack(each)
        return Output((example,), scores_C[None], readout_V.log_softmax(-1)[None], texts=texts)

    def _log_likelihood(
        self, example: Example, answer: tuple[int, ...], conditions: Conditions
    ) -> Tensor:
        """Mean log-probability of an answer's tokens behind the prompt."""
        logits_TV = self.run((*example.prompt, *answer), conditions).logits_TV
        before_answer = len(example.prompt) - 1
        each = [
            logits_TV[before_answer + i].log_softmax(-1)[token] for i, token in enumerate(answer)
        ]
        return torch.stack(each).mean()

    @torch.no_grad()
    def continued(
        self,
        prompt: tuple[int, ...],
        new_tokens: int,
        conditions: Conditions = UNDISTURBED,
    ) -> tuple[int, ...]:
        """Up to so many tokens that the model adds greedily, its end included.

        The whole row is run again for each of them, so defense and perturbation hold at every
        token, those in the answer included.
        """
        declared = self.model.generation_config.eos_token_id
        ends = {*(declared if isinstance(declared, list) else [declared])}
        ends.add(self.tokenizer.eos_token_id)
        row = prompt
        while len(row) < len(prompt) + new_tokens:
            row = (*row, int(self.run(row, conditions).logits_TV[-1].argmax()))
            if row[-1] in ends:
                break
        return row[len(prompt) :]


def teacher_forced(example: Example) -> bool:
    """Whether its answers are scored by their log-probabilities: one of them is longer than one."""
    return any(len(answer) > 1 for answer in example.candidates)


def eager(model: nn.Module) -> Any:
    """The model, frozen, with transformers' own eager attention from now on."""
    frozen: Any = model.eval().requires_grad_(False)
    frozen.set_attn_implementation("eager")
    return frozen


@contextmanager
def reweighted(model: nn.Module, change: WeightChange | None) -> Iterator[None]:
    """Give the model's own parameters other values while the context is open."""
    kept = []
    if change is not None:
        for name in matrices(model):
            weight = model.get_parameter(name)
            changed = change.of(name, weight.data)
            if changed is not None:
                kept.append((weight, weight.data))
                weight.data = changed
    try:
        yield
    finally:
        for weight, values in kept:
            weight.data = values


@contextmanager
def as_eager(model: Any) -> Iterator[None]:
    """Run a model of the other engine with eager attention while the context is open."""
    own, model.config._attn_implementation = model.config._attn_implementation, "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = own
