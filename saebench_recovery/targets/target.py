"""A causal language model with its SAEs, as tasks, defenses and attacks see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import reason
from saebench_recovery.base.sites import Site
from saebench_recovery.model.agreement import check_agreement
from saebench_recovery.model.examples import Example
from saebench_recovery.model.hooks import blocks
from saebench_recovery.model.language_model import LanguageModel
from saebench_recovery.model.prompt_rules import marks_turns
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.schema import Agreement
from saebench_recovery.targets.phase import visible
from saebench_recovery.targets.presets import Preset
from saebench_recovery.targets.rendering import rendered


@dataclass(frozen=True, eq=False)  # a target is only itself
class Target(LanguageModel):
    """A model and the dictionaries at its hook points.

    `neutral_texts` are texts, and `retained` prompts with answers, that belong to no task: what a
    defense does to them is a side effect. `commits` are those of the hub's repositories that
    something has been read from so far.
    """

    dictionaries: Mapping[Site, Dictionary]
    preset: Preset
    neutral_texts: Sequence[str]
    retained: Sequence[tuple[str, str, tuple[str, ...]]]
    commits: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[Site, ...] = ()  # hook points at which the engine is checked

    def __post_init__(self) -> None:
        super().__post_init__()
        for site in self.dictionaries:
            if site.layer >= len(blocks(self.model)):
                raise UserError(
                    f"SAE at {site}, but {self.name} has {len(blocks(self.model))} blocks"
                )

    @cached_property
    def agreement(self) -> Agreement:
        """The check at load.

        Raises:
            UserError: the architecture is not run exactly at a hook point that is asked for.
        """
        return check_agreement(self, self.asked)

    @property
    def bos(self) -> int | None:
        """The token with which every prompt begins; None if the model uses none."""
        found: int | None = self.tokenizer.bos_token_id
        return found if self.preset.bos else None

    @cached_property
    def bos_marks_turns(self) -> bool:
        """Whether a chat of one request has a BOS inside, with a system message or without."""
        if not getattr(self.tokenizer, "chat_template", None):
            return False
        bos = self.tokenizer.bos_token_id
        for system in (None, "Be brief."):
            with suppress(UserError):  # of a template that takes no system message
                if marks_turns(self.chat_ids("Hello", system), bos):
                    return True
        return False

    def chat_ids(self, request: str, system: str | None = None) -> tuple[int, ...]:
        """What the chat template makes of a request, up to where the answer begins.

        Raises:
            UserError: there is no template, or it fails.
        """
        tokenizer = self.tokenizer
        if not tokenizer.chat_template:
            raise UserError(f"{self.name} has no chat template; use -T format=plain")
        messages = [{"role": "user", "content": request}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        try:
            template = tokenizer.get_chat_template()
            text = rendered(template, messages, tokenizer.special_tokens_map)
        except (UserError, ValueError) as error:
            raise UserError(f"the chat template of {self.name} fails: {reason(error)}") from error
        return self._ids(text)

    def site_for(self, task: str, wanted: str | None) -> Site:
        """The hook point to defend: the wanted one, or the target's own for the task.

        Raises:
            UserError: the target has no SAE there.
        """
        site = Site.parse(wanted or self.preset.tasks[task].site)
        self.dictionary(site)
        return site

    def dictionary(self, site: Site) -> Dictionary:
        """The SAE at a site.

        Raises:
            UserError: there is none, or it was trained for a model of another width.
        """
        if site not in self.dictionaries:
            known = ", ".join(str(s) for s in sorted(self.dictionaries))
            raise UserError(f"{self.name} has no SAE at {site}; it has: {known}")
        config: Any = self.model.config
        found = self.dictionaries[site]
        if found.d_model != config.hidden_size:
            raise UserError(
                f"the SAE at {site} reads {found.d_model} dimensions, but {self.name} has "
                f"{config.hidden_size}: it was trained for another model"
            )
        return found

    def sites_after(self, site: Site, last: Site | None = None) -> list[Site]:
        """Later hook points that have an SAE, in their order, up to the last that is read."""
        later = sorted(other for other in self.dictionaries if other > site)
        return [other for other in later if last is None or other <= last]

    def example(
        self,
        id: str,
        prompt: str,
        candidates: Sequence[str],
        *,
        wrong: str | None = None,
        cluster: str = "",
    ) -> Example:
        """An example from texts; answers carry their leading space."""
        ids = tuple(self.answer(text) for text in candidates)
        unwanted = None if wrong is None else self.answer(wrong)
        return Example(id, self.encode(prompt), ids, unwanted, cluster or id)

    @property
    def neutral(self) -> list[str]:
        """Text that belongs to no behaviour; while a defense is fitted, another half of it."""
        return visible(self.neutral_texts, str)

    def retained_examples(self) -> list[Example]:
        """Questions about facts that no task removes, each with its answer first."""
        every = [
            self.example(f"retain/{i}", prompt, [answer, *others])
            for i, (prompt, answer, others) in enumerate(self.retained)
        ]
        return visible(every, lambda example: str(example.prompt))
