"""`ioi`: indirect object identification, "Mary and John ... John gave a drink to" -> " Mary".

Circuit-level task of the benchmark (Wang et al. 2022, arXiv 2211.00593): several templates, both
orders of the names (ABBA and BABA), names and objects as data. Name pairs are split, so no
selection prompt shares its pair with an evaluation prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.base.splits import fraction_of
from saebench_recovery.interfaces import Example, PluginConfig, Split, Task
from saebench_recovery.registry import register_task
from saebench_recovery.selection.latent_scores import activation_gradient
from saebench_recovery.targets.organism import world
from saebench_recovery.targets.target import Target


@register_task("ioi")
class IndirectObject(Task):
    """Behaviour: the indirect object's logit exceeds every other name's at the prompt's end."""

    class Config(PluginConfig):
        prompts: int = Field(default=256, ge=1, le=10_000, description="evaluation prompts")
        selection_prompts: int = Field(
            default=96, ge=1, le=10_000, description="for choosing latents"
        )
        variant: Literal["mixed", "published"] = Field(
            default="mixed",
            description="eight templates in both orders, or the published BABA template 0 alone",
        )
        against: Literal["names", "subject"] = Field(
            default="names",
            description="what the indirect object must beat: every name of the pool, or, as "
            "published, the subject alone",
        )

    config: Config

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        if split == "retain":
            return target.retained_examples()
        count = self.config.selection_prompts if split == "selection" else self.config.prompts
        published = self.config.variant == "published"
        # Many more, because prompts in the other order, or with a split name, are left out.
        drawn = world.indirect_objects(
            split, 4 * count, template="published" if published else None
        )
        names = [f" {name}" for name in world.load("ioi")["names"]]
        names = [name for name in names if target.single_token(name) is not None]
        fit = [
            p
            for p in drawn
            if {p.answer, p.wrong} <= set(names)
            and not (published and p.text.find(p.answer) < p.text.find(p.wrong))
        ]
        if len(fit) < count:
            raise UserError(
                f"only {len(fit)} of {count} {split} prompts have names that are single tokens "
                f"of {target.name}; ask for fewer (-T prompts, -T selection_prompts)"
            )
        return [self._example(target, prompt, names) for prompt in fit[:count]]

    def attribution(self, target: Target, site: Site) -> Tensor:
        """Activation times gradient of the published logit difference, on the selection split."""
        examples = self.examples(target, "selection")
        return activation_gradient(
            target, site, examples, lambda output: output.scores_EC[:, 0] - output.scores_EC[:, 1]
        )

    def _example(
        self, target: Target, prompt: world.IndirectObject, names: Sequence[str]
    ) -> Example:
        """The wrong target is a third name, which the prompt does not contain.

        Among all names it has to beat the same competitors as the right one.
        """
        place = fraction_of(prompt.text)
        strangers = [name for name in names if name not in (prompt.answer, prompt.wrong)]
        return target.example(
            f"ioi/{int(place * 2**48):012x}",
            prompt.text,
            [prompt.answer, prompt.wrong, *(strangers if self.config.against == "names" else ())],
            wrong=strangers[int(place * len(strangers))],
            cluster=prompt.key,
        )
