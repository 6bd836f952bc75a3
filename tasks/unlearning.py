"""`unlearning`: multiple choice about facts that a defense should take away, output level.

Protocol of arXiv 2606.18322 (after WMDP, arXiv 2403.03218): each question in all 24 orders of its
options, only those that the clean model gets right in every order, and the answer read from the
four letters. Latents by density on text about the facts against other text, as in SAEBench's
unlearning (arXiv 2503.09532). Texts are read one by one here; SAEBench joins them to windows of
1024 tokens and drops those of at most 50 characters, and so chooses others: of the 16 best on
`organism` 0.10 to 0.39 are the same. The cloze format compares the options themselves, for models
that do not answer with letters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice, permutations
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from saebench_recovery.tasks._questions import EMBEDDED, Bank, Question, Table, bank
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, PluginConfig, Split, Task
from saebench_recovery.model.forward import forward
from saebench_recovery.registry import register_task
from saebench_recovery.selection.latent_scores import CHUNK, content_residuals
from saebench_recovery.targets.organism.world import LETTERS
from saebench_recovery.targets.target import Target

ORDERS = list(permutations(range(4)))  # numbered as published


@register_task("unlearning")
class Unlearning(Task):
    """Behaviour: the right option has the best score of the four at the end of the prompt.

    Its score is a letter's logit, or in the cloze format the option's mean log-probability.
    """

    class Config(PluginConfig):
        data: str | None = Field(
            default=None,
            description="facts, plain-facts, wmdp-bio, or a CSV, JSON, JSONL or Parquet file or "
            "data set with the columns question, choices (in CSV a list as JSON, Python, pandas or "
            "numpy write it) and answer (0 to 3, or A to D); "
            "default: the invented facts for the organism, plain ones for other models",
        )
        columns: dict[Literal["question", "choices", "answer", "item"], str] = Field(
            default={},
            description="other names of these columns of a table; item is the source item that "
            "several questions share, which are then one cluster in one split",
        )
        split: str | None = Field(
            default=None, description="of a data set; default: train, or the only one"
        )
        format: Literal["letters", "cloze"] = Field(
            default="letters", description="letters in 24 orders, or cloze"
        )
        examples: int = Field(
            default=288, ge=1, le=100_000, description="evaluation prompts, about; at most"
        )
        retain_threshold: float = Field(
            default=0.01,
            gt=0,
            le=1,
            description="latents as dense as this on the retain corpus are out",
        )
        forget_corpus: str | None = Field(
            default=None, description="file or data set with the column text; default: data's own"
        )
        retain_corpus: str | None = Field(default=None, description="the same, of other text")
        corpus_texts: int = Field(
            default=1024, ge=1, le=100_000, description="texts read of either"
        )
        context: int = Field(default=1024, ge=2, le=131_072, description="tokens read of a text")

        @model_validator(mode="after")
        def _corpora_are_read(self) -> Self:
            for name in ("forget_corpus", "retain_corpus"):
                if self.data in EMBEDDED and getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is not read where data is an embedded set: they "
                        "have texts of their own"
                    )
            return self

    config: Config

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self._examples = cache(self._lay_out)
        self._unknown: dict[str, Example] = {}

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        return self._examples(target, split)

    def attribution(self, target: Target, site: Site) -> Tensor:
        """Density on the forget corpus, zero where that on the retain corpus is too high."""
        forget_M, retain_M = (
            self._density(target, site, texts)
            for texts in (self._bank(target).forget_corpus, self._bank(target).retain_corpus)
        )
        return forget_M * (retain_M < self.config.retain_threshold)

    def never_learned(self, example: Example) -> Example | None:
        return self._unknown.get(example.id)

    def _density(self, target: Target, site: Site, texts: Sequence[str]) -> Tensor:
        """Share [M] of content tokens on which each latent is active."""
        prompts = [target.encode(text)[: self.config.context] for text in texts]
        dictionary = target.dictionary(site)
        active_M, tokens = torch.zeros(dictionary.width, device=target.device), 0
        for _, resid_ND in content_residuals(target, site, prompts):
            for latents in dictionary.pieces():
                active_M[latents.chosen] += (latents.read(resid_ND) > 0).sum(0)
            tokens += len(resid_ND)
        return active_M / tokens

    def _bank(self, target: Target) -> Bank:
        config = self.config
        own = "facts" if target.preset.knowledge == "organism" else "plain-facts"
        table = Table(config.data or own, config.split, tuple(config.columns.items()))
        return bank(table, config.forget_corpus, config.retain_corpus, config.corpus_texts)

    def _lay_out(self, target: Target, split: Split) -> list[Example]:
        if split == "retain":
            return self._retained(target)
        questions = self._bank(target).forget[split]
        size = len(ORDERS) if self.config.format == "letters" else 1
        most = max(1, self.config.examples // size)
        asked = (self._asked(target, question) for question in questions)
        kept = list(islice(asked if split == "selection" else self._known(target, asked), most))
        if not kept:
            raise UserError(
                f"{target.name} answers none of {len(questions)} questions right in every order; "
                "try -T format=cloze"
            )
        return [example for orders in kept for example in orders]

    def _known(self, target: Target, asked: Iterator[list[Example]]) -> Iterator[list[Example]]:
        """The questions that the clean model gets right in every order."""
        while block := list(islice(asked, CHUNK)):
            # Most that a model does not know are found in one order.
            first = self._right(target, [orders[0] for orders in block])
            for orders, right in zip(block, first, strict=True):
                if right and all(self._right(target, orders[1:])):
                    yield orders

    @torch.no_grad()
    def _right(self, target: Target, examples: list[Example]) -> list[bool]:
        if not examples:
            return []
        output = forward(target, target.batch(examples), {})
        right: list[bool] = self.behaviour(output).tolist()
        return right

    def _retained(self, target: Target) -> list[Example]:
        """Questions to keep, with their options in one order, and without."""
        kept = self._bank(target).retain
        listed = [self._listed(target, q, ORDERS[0]) for q in kept]
        plain = [self._cloze(target, q) for q in kept]
        both = [*listed, *plain] if self.config.format == "letters" else plain
        return both or target.retained_examples()

    def _asked(self, target: Target, question: Question) -> list[Example]:
        if self.config.format == "cloze":
            return [self._cloze(target, question)]
        return [self._listed(target, question, order) for order in ORDERS]

    def _listed(self, target: Target, question: Question, order: tuple[int, ...]) -> Example:
        prompt = self._bank(target).layout.listed(question, order)
        right = LETTERS[order.index(question.answer)]
        letters = [f" {right}", *(f" {letter}" for letter in LETTERS if letter != right)]
        name = f"{self.name}/{question.key}/{ORDERS.index(order):02d}"
        cluster = f"{self.name}/{question.item}"
        example = target.example(name, prompt, letters, cluster=cluster)
        if question.never_learned is not None:
            other = replace(question, text=question.never_learned, never_learned=None)
            unknown = self._bank(target).layout.listed(other, order)
            self._unknown[example.id] = replace(example, prompt=target.encode(unknown))
        return example

    def _cloze(self, target: Target, question: Question) -> Example:
        cue = self._bank(target).layout.cue
        right = question.options[question.answer]
        options = [f" {right}", *(f" {o}" for o in question.options if o != right)]
        name, cluster = f"{self.name}/{question.key}", f"{self.name}/{question.item}"
        example = target.example(name, question.text + cue, options, cluster=cluster)
        if question.never_learned is not None:
            unknown = target.encode(question.never_learned + cue)
            self._unknown[example.id] = replace(example, prompt=unknown)
        return example
