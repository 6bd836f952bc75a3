"""`ioi`: indirect object identification, "Mary and John ... John gave a drink to" -> " Mary".

Circuit-level task of the benchmark (Wang et al. 2022, arXiv 2211.00593): several templates, both
orders of the names (ABBA and BABA), names and objects as data. Name pairs are split, so no
selection prompt shares its pair with an evaluation prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from saebench_recovery.errors import UserError
from saebench_recovery.interfaces import Example, PluginConfig, Split, Task
from saebench_recovery.recovery.attribution import activation_gradient
from saebench_recovery.registry import register_task
from saebench_recovery.sites import Site
from saebench_recovery.splits import fraction_of
from saebench_recovery.target.organism import world
from saebench_recovery.target.target import Target


@register_task("ioi")
class IndirectObject(Task):
    """Behaviour: the indirect object's logit exceeds the subject's at the last prompt token."""

    class Config(PluginConfig):
        prompts: int = Field(default=192, ge=1, description="evaluation prompts")
        selection_prompts: int = Field(default=96, ge=1, description="for choosing latents")
        template: str | None = Field(default=None, description="one template only, by name")

    config: Config

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        if split == "retain":
            return target.retained_examples()
        count = self.config.selection_prompts if split == "selection" else self.config.prompts
        # Twice as many, because prompts with a name of several tokens are left out.
        drawn = world.indirect_objects(split, 2 * count, template=self._template())
        fit = [p for p in drawn if target.single_token(p.answer) and target.single_token(p.wrong)]
        if len(fit) < count:
            raise UserError(
                f"the tokenizer of {target.name} splits so many names that only {len(fit)} of "
                f"{count} {split} prompts remain; try -T prompts={len(fit)}"
            )
        return [self._example(target, prompt) for prompt in fit[:count]]

    def attribution(self, target: Target, site: Site) -> Tensor:
        """Activation times gradient of the logit difference, on the selection split."""
        examples = self.examples(target, "selection")
        return activation_gradient(target, site, examples, self.objective)

    def _template(self) -> str | None:
        known = world.load("ioi")["templates"]
        if self.config.template is not None and self.config.template not in known:
            raise UserError(f"no ioi template {self.config.template!r}; known: {', '.join(known)}")
        return self.config.template

    def _example(self, target: Target, prompt: world.IndirectObject) -> Example:
        """The wrong target is a third name, which the prompt does not contain."""
        place = fraction_of(prompt.text)
        strangers = [
            f" {name}"
            for name in world.load("ioi")["names"]
            if f" {name}" not in (prompt.answer, prompt.wrong) and target.single_token(f" {name}")
        ]
        return target.example(
            f"ioi/{int(place * 2**48):012x}",
            prompt.text,
            [prompt.answer, prompt.wrong],
            wrong=strangers[int(place * len(strangers))],
            cluster=prompt.key,
        )
