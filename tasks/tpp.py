"""`tpp`: targeted probe perturbation, latent level: what a linear probe says of a text's class.

SAEBench's TPP (arXiv 2503.09532): one-against-rest probes on the residual averaged over the content
tokens at the defended hook point, latents by their effect on the target class's probe. Recovery as
in arXiv 2606.18322: a valid flip is a text of the class whose probe says so when clean and not when
defended. Each class is a task of its own, with a row and a fitted defense.

Where it differs from SAEBench: probes are logistic regressions that have converged, on the
selection texts (there AdamW, and the epoch that is best on test texts); classes are not balanced by
gender or rating; latents without a positive effect are never selected, so there may be fewer than
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import nearest
from saebench_recovery.base.sites import Site
from saebench_recovery.base.splits import fraction_of, split_of
from saebench_recovery.base.tables import Filled, TableRow, read_table
from saebench_recovery.interfaces import Example, Output, PluginConfig, Run, Split, Task
from saebench_recovery.registry import register_task
from saebench_recovery.selection.probes import Probes, balanced_accuracy, fit_probes
from saebench_recovery.targets.organism import world
from saebench_recovery.targets.target import Target


class Text(NamedTuple):
    text: str
    item: str = ""  # the source item, where several texts are made from one


Texts = Mapping[str, Sequence[Text]]  # by class
START = 100  # texts with the same first characters are taken for one, and stand in one split


@register_task("tpp")
class TargetedProbe(Task):
    """Behaviour: the class's probe is positive on the pooled residual of one of its texts.

    An example's candidates are the numbers of all classes, its own first.
    """

    class Config(PluginConfig):
        data: str = Field(
            default="biographies",
            description="biographies, bias-in-bios-1, -2 or -3, amazon, or a CSV, JSON, JSONL or "
            "Parquet file or data set with the columns text and label",
        )
        columns: dict[Literal["text", "label", "item"], str] = Field(
            default={},
            description="other names of these columns of a table; item is the source item that "
            "several texts share, which are then kept in one split",
        )
        split: str | None = Field(
            default=None, description="of a data set; default: train, or the only one"
        )
        label: str | None = Field(default=None, description="one class; default: a task for each")
        positions: Literal["content", "readout"] = Field(
            default="content", description="perturbed tokens: all but BOS, or only the last"
        )
        texts: int = Field(
            default=128, ge=1, le=10_000, description="evaluation texts per class, at most"
        )
        selection_texts: int = Field(
            default=96, ge=2, le=10_000, description="per class, to fit and choose"
        )
        scored_texts: int = Field(
            default=64,
            ge=1,
            le=10_000,
            description="evaluation texts per class for probe accuracy and TPP score, at most",
        )
        context: int = Field(default=128, ge=2, le=131_072, description="tokens read of a text")

    config: Config

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self._fitted = cache(self._fit)  # the variants of a data set share both
        self._examples = cache(self._lay_out)

    @property
    def label(self) -> str:
        return f"{self.name}/{self.config.label}" if self.config.label else self.name

    def variants(self) -> Sequence[Task]:
        if self.config.label is not None:
            self._class()  # an unknown one is found here, before any work
            return (self,)
        made = []
        for label in self._texts("selection"):
            variant = type(self)(self.config.model_copy(update={"label": label}))
            variant._fitted, variant._examples = self._fitted, self._examples
            made.append(variant)
        return made

    def fit(self, target: Target, site: Site) -> None:
        self.pool = site
        self._probes = self._fitted(target, site)

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        if split == "retain":
            return target.retained_examples()
        return self._examples(target, split)[self._class()]

    def attribution(self, target: Target, site: Site) -> Tensor:
        """Effect on the class's probe, from the selection texts."""
        return self._fitted(target, site).effect(self._class())

    def margins(self, output: Output) -> Tensor:
        """The logits of the candidates' probes."""
        logits_EK = self._logits(output)
        class_EC = [[k for (k,) in example.candidates] for example in output.examples]
        return logits_EK.gather(1, torch.tensor(class_EC, device=logits_EK.device))

    def positions(self, example: Example) -> tuple[int, ...]:
        if self.config.positions == "readout":
            return super().positions(example)
        return tuple(range(1, len(example.prompt)))

    def fidelity(self, output: Output, clean: Output) -> Tensor:
        """1 - the largest change of any class's probability: the other probes count as well."""
        now_EK, then_EK = (self._logits(o).sigmoid() for o in (output, clean))
        return 1 - (now_EK - then_EK).abs().amax(1)

    def figures(self, output: Output, clean: Output) -> dict[str, Tensor]:
        now_EK, then_EK = (self._logits(o) > 0 for o in (output, clean))
        return {"probes_as_clean": (now_EK == then_EK).float().mean(1)}

    def side_figures(self, clean: Run, defended: Run) -> dict[str, float]:
        """The TPP score, and the held-out quality of the probes that it rests on.

        The score is the own probe's drop in balanced accuracy less the others' mean drop.
        """
        texts = self._examples(self._probes.target, "evaluation")
        scored = self.config.scored_texts
        said = [
            torch.cat([self._logits(output) for output in defended(of_class[:scored])])
            for of_class in texts
        ]
        accuracy_K, own = self._probes.accuracy_K, self._class()
        drop_K = accuracy_K - balanced_accuracy(said)
        unintended = float(drop_K.sum() - drop_K[own]) / (len(drop_K) - 1)
        return {
            "probe_accuracy": float(accuracy_K[own]),
            "worst_probe_accuracy": float(accuracy_K.min()),
            "intended_drop": float(drop_K[own]),
            "unintended_drop": unintended,
            "tpp_score": float(drop_K[own]) - unintended,
        }

    def _logits(self, output: Output) -> Tensor:
        assert output.pooled_ED is not None
        return self._probes.logits(output.pooled_ED)

    def _class(self) -> int:
        """The number of the task's class."""
        classes, label = list(self._texts("selection")), str(self.config.label)
        if label not in classes:
            raise UserError(f"task {self.name!r} has no class {label!r}; {nearest(label, classes)}")
        return classes.index(label)

    def _texts(self, split: Split) -> Texts:
        selecting = split == "selection"
        count = self.config.selection_texts if selecting else self.config.texts
        if self.config.data == "biographies":
            return _biographies("selection" if selecting else "evaluation", count)
        columns = tuple(self.config.columns.items())
        labelled = _labelled(self.config.data, self.config.split, columns)[split]
        return {c: texts[:count] for c, texts in labelled.items()}

    def _lay_out(self, target: Target, split: Split) -> list[list[Example]]:
        """The examples of every class."""
        texts = self._texts(split)
        chosen = self._examples(target, "selection") if split == "evaluation" else []
        seen = {example.prompt for of_class in chosen for example in of_class}
        laid: list[list[Example]] = []
        for own, (label, of_class) in enumerate(texts.items()):
            candidates = ((own,), *((k,) for k in range(len(texts)) if k != own))
            items: dict[tuple[int, ...], str] = {}
            for text, item in of_class:
                items.setdefault(target.encode(text)[: self.config.context], item)
            laid.append([])
            for ids, item in items.items():
                if ids not in seen:  # a cut can make texts alike
                    name = f"{self.name}/{label}/{fraction_of(str(ids)):.12f}"
                    laid[-1].append(Example(name, ids, candidates, cluster=item or name))
        return laid

    def _fit(self, target: Target, site: Site) -> Probes:
        texts, unseen = (
            [[example.prompt for example in of_class] for of_class in self._examples(target, split)]
            for split in ("selection", "evaluation")
        )
        scored = self.config.scored_texts
        return fit_probes(target, site, texts, [of_class[:scored] for of_class in unseen])


class Labelled(TableRow):
    text: Filled
    label: Filled
    item: Filled | None = None


@cache
def _biographies(split: Literal["selection", "evaluation"], count: int) -> Texts:
    """The first `count` different biographies of each profession, no source item in both splits."""
    found: dict[str, dict[str, str]] = {p: {} for p in world.load("biographies")["professions"]}
    lives = world.biographies(split)
    while any(len(texts) < count for texts in found.values()):
        life = next(lives)
        own = split_of(life.item, selection=0.5, evaluation=0.5) == split
        if own and len(found[life.profession]) < count:
            found[life.profession][life.text] = life.item
    return {p: tuple(Text(*pair) for pair in texts.items()) for p, texts in found.items()}


@cache
def _labelled(
    data: str, split: str | None, columns: tuple[tuple[str, str], ...]
) -> Mapping[Split, Mapping[str, Sequence[Text]]]:
    """A table's texts by split and class, half of them for selection: their own words decide.

    Texts that share a source item go by it, so that they stand in one split.
    """
    named = world.load("tpp").get(data, {"source": data})
    names: Mapping[str, str] | None = named.get("classes")
    found: dict[str, dict[str, Text]] = {}
    for row in read_table(
        named["source"], Labelled, columns=named.get("columns", {}) | dict(columns), split=split
    ):
        if names is None or row.label in names:
            label = row.label if names is None else names[row.label]
            text = Text(row.text, row.item or "")
            found.setdefault(label, {}).setdefault(row.text[:START], text)
    if len(found) < 3:
        raise UserError(
            f"{data} has the labels {sorted(found)}: tpp needs three, one to remove and another to "
            "push towards that neither the text nor the defended state shows"
        )
    splits: dict[Split, dict[str, list[Text]]] = {"selection": {}, "evaluation": {}}
    for label, texts in sorted(found.items()):
        for own in splits.values():
            own[label] = []
        for start, text in texts.items():
            selecting = fraction_of(text.item or start) < 0.5
            splits["selection" if selecting else "evaluation"][label].append(text)
    few = [label for label in found if any(len(own[label]) < 2 for own in splits.values())]
    if few:
        raise UserError(f"{data} has too few texts with the label {few[0]!r} to split them")
    return splits
