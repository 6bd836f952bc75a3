"""Tasks on `ioi` that break a rule of soundness, each one small; see `tests.cases.expected`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from saebench_recovery.tasks.ioi import IndirectObject
from torch import Tensor

from saebench_recovery import register_task
from saebench_recovery.interfaces import Example, Output, Split
from saebench_recovery.targets.target import Target


@register_task("t-two-detectors")
class TwoDetectors(IndirectObject):
    """Strict where no distribution is asked for (valid flips, controls), lenient in the replay."""

    def behaviour(self, output: Output) -> Tensor:
        least = 0.0 if output.logprobs_EV is None else -1e3
        return self.objective(output) > least


@register_task("t-opposite")
class Opposite(IndirectObject):
    """Its objective leads away from the behaviour."""

    def objective(self, output: Output) -> Tensor:
        return -self.margins(output)[:, 0]

    def behaviour(self, output: Output) -> Tensor:
        return self.margins(output)[:, 0] > 0


@register_task("t-near-dup")
class NearDuplicates(IndirectObject):
    """Selection is evaluation, but for one more space token at an early place."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        if split != "selection":
            return super().examples(target, split)
        space = target.tokenizer("\n", add_special_tokens=False)["input_ids"] or [5]
        evaluated = super().examples(target, "evaluation")[:96]
        return [example.with_inserted(1, space[:1]) for example in evaluated]


@register_task("t-copies")
class Copies(IndirectObject):
    """Four prompts a hundred times, each with an id and cluster of its own."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        found = super().examples(target, split)
        if split != "evaluation":
            return found
        return [replace(found[i % 4], id=f"c{i}", cluster=f"c{i}") for i in range(100)]


@register_task("t-wrong-shown")
class WrongShown(IndirectObject):
    """The wrong target is what the defended model says already (the subject)."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        found = super().examples(target, split)
        if split != "evaluation":
            return found
        pairs = [(example, example.candidates[:2]) for example in found]
        return [replace(example, candidates=two, wrong=two[1]) for example, two in pairs]


@register_task("t-no-retain")
class NoRetain(IndirectObject):
    """Has nothing that a defense should leave alone."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        return [] if split == "retain" else super().examples(target, split)


@register_task("t-shared-cluster")
class SharedCluster(IndirectObject):
    """Selection and evaluation share source items (the two orders of one pair), not prompts."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        if split == "retain":
            return super().examples(target, split)
        found = super().examples(target, "evaluation")
        return found[1::2] if split == "selection" else found[0::2]


@register_task("t-shown-and-stopped")
class ShownAndStopped(IndirectObject):
    """Every output counts as stopped."""

    def stopped(self, output: Output) -> Tensor:
        return torch.ones(len(output.examples), dtype=torch.bool)


@register_task("t-same-ids")
class SameIds(IndirectObject):
    """Evaluation examples have one id."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        found = super().examples(target, split)
        return [replace(e, id="one") for e in found] if split == "evaluation" else found


@register_task("t-raises")
class ObjectiveRaises(IndirectObject):
    """Its objective raises."""

    def objective(self, output: Output) -> Tensor:
        raise IndexError("out of range")


@register_task("t-reads-ids")
class ReadsIds(IndirectObject):
    """Lenient for examples that it knows by their ids."""

    def behaviour(self, output: Output) -> Tensor:
        known = [example.id.startswith("ioi/") for example in output.examples]
        least_E = torch.where(torch.tensor(known), 0.0, 2.0)
        return self.objective(output) > least_E


@register_task("t-harder-wrong")
class HarderWrong(IndirectObject):
    """A wrong answer has to win by more, so that none is injected."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        found = super().examples(target, split)
        self.right = {**getattr(self, "right", {}), **{e.prompt: e.candidates[0] for e in found}}
        return found

    def is_right(self, output: Output) -> Tensor:
        asked = [e.candidates[0] == self.right.get(e.prompt) for e in output.examples]
        return torch.tensor(asked, dtype=torch.float32, device=output.scores_EC.device)

    def objective(self, output: Output) -> Tensor:
        return super().objective(output) - 6 * (1 - self.is_right(output))


@register_task("t-easier-right")
class EasierRight(HarderWrong):
    """The right answer counts as given where it loses by little; the objective is honest."""

    def objective(self, output: Output) -> Tensor:
        return IndirectObject.objective(self, output)

    def behaviour(self, output: Output) -> Tensor:
        return self.objective(output) + 1.5 * self.is_right(output) > 0


@register_task("t-misleading")
class Misleading(IndirectObject):
    """The sign of its objective is right, and its slope leads away from the behaviour."""

    def objective(self, output: Output) -> Tensor:
        margin_E = self.margins(output)[:, 0]
        return torch.where(margin_E > 0, margin_E, -1 / (0.05 - margin_E.clamp(max=0)))


@register_task("t-all-faithful")
class AllFaithful(IndirectObject):
    """Finds every output like the clean one."""

    def fidelity(self, output: Output, clean: Output) -> Tensor:
        return torch.ones(len(output.examples))


@register_task("t-retain-alone")
class RetainAlone(IndirectObject):
    """Retain examples have one candidate, which is always the best."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        found = super().examples(target, split)
        if split != "retain":
            return found
        return [replace(example, candidates=example.candidates[:1]) for example in found]
