"""A task: examples in three splits, and one detector for the behaviour."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import Plugin
from saebench_recovery.base.sites import Site
from saebench_recovery.model.examples import Example, Output, Run
from saebench_recovery.targets.target import Target

Split = Literal["selection", "evaluation", "retain"]


class Task(Plugin, ABC, kind="task"):
    """Examples in three disjoint splits, and one detector for the behaviour.

    A task reads next-token scores unless it says otherwise: one that sets `pool` reads the mean
    residual there, and one with `new_tokens` is judged by what the model then writes.
    """

    pool: Site | None = None
    new_tokens: int = 0

    @property
    def label(self) -> str:
        """What the task's row is called."""
        return self.name

    def variants(self) -> Sequence[Task]:
        """The tasks that this one stands for, a row and a fitted defense each.

        Most stand for themselves; one with several targets (a class to remove, say) lists them.
        """
        return (self,)

    def fit(self, target: Target, site: Site) -> None:
        """Prepare on the selection split (probes, say) for a defense at `site`."""

    @abstractmethod
    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        """The split's examples, in a fixed order.

        `selection` chooses latents, `evaluation` is attacked, `retain` holds behaviours that
        a defense should leave alone. No prompt may stand in two splits.
        """

    @abstractmethod
    def attribution(self, target: Target, site: Site) -> Tensor:
        """Score [M] of every latent at `site` for this behaviour, from the selection split."""

    def margins(self, output: Output) -> Tensor:
        """Differentiable margin [E, C] of each candidate: positive exactly where it is shown.

        By default its score less the best other one: a positive margin is then an argmax, which
        the published mean-of-others margin does not guarantee.
        """
        scores_EC = output.scores_EC
        padded_EC = torch.nn.functional.pad(scores_EC, (0, 1), value=-torch.inf)  # it may be alone
        first_E1, second_E1 = padded_EC.topk(2).values.chunk(2, 1)
        return scores_EC - torch.where(scores_EC == first_E1, second_E1, first_E1)

    def objective(self, output: Output) -> Tensor:
        """Differentiable margin [E] of the behaviour, the first candidate's."""
        return self.margins(output)[:, 0]

    def behaviour(self, output: Output) -> Tensor:
        """The one detector, bool [E], for clean, defended and recovered outputs alike.

        The harness never judges by anything else. A task that generates judges the texts.
        """
        return self.objective(output) > 0

    def stopped(self, output: Output) -> Tensor:
        """Whether the defense did what it should, bool [E]; never where `behaviour` is true.

        Narrower than its opposite where an output can be neither: degenerate text is no refusal.
        """
        return ~self.behaviour(output)

    def positions(self, example: Example) -> tuple[int, ...]:
        """Token positions that a residual attack may perturb: by default the readout."""
        return (len(example.prompt) - 1,)

    def insertion(self, example: Example) -> int:
        """The token before which a suffix is put: behind the last, or before a template's end."""
        return len(example.prompt)

    @final
    def wrong_target(self, example: Example, defended: Output, index: int) -> Example:
        """The same example asking for an answer that neither model gives.

        The injection control pushes towards it: if that is as easy as recovery, recovery is no
        evidence. It is `example.wrong`, or else the best candidate that is neither right nor
        shown by the defended model, whose output for the example is `defended`'s entry `index`.

        Raises:
            UserError: the example has neither.
        """
        right = example.candidates[0]
        wrong = example.wrong
        if wrong is None:
            margin_C = self.margins(defended)[index, : len(example.candidates)]
            others = [c for c in margin_C.argsort(descending=True).tolist() if c != 0]
            # Where a task can show several and shows all of them, the one that is shown least.
            last = others[-1] if len(others) > 1 else None
            chosen = next((c for c in others if margin_C[c] <= 0), last)
            wrong = None if chosen is None else example.candidates[chosen]
        if wrong is None or wrong == right:
            raise UserError(
                f"task {self.name!r} has no wrong target for example {example.id!r}: give it a "
                "third candidate or a wrong one"
            )
        return example.with_candidates(wrong, *(c for c in example.candidates if c != wrong))

    def never_learned(self, example: Example) -> Example | None:
        """The example asked of what the model cannot know; of all evaluation examples, or none."""
        return None

    def beginnings(self) -> Sequence[str]:
        """Beginnings of answers that show the behaviour, of a task that generates."""
        return ()

    def side_figures(self, clean: Run, defended: Run) -> dict[str, float]:
        """Run-level figures that the task's field asks for, beside the other side effects.

        `clean` and `defended` run any examples through the model without and with the defense. A
        task that generates is given the texts, and no scores.
        """
        return {}

    def fidelity(self, output: Output, clean: Output) -> Tensor:
        """Closeness [E] of an output to the clean one: 1 - total variation at the readout."""
        if output.logprobs_EV is None or clean.logprobs_EV is None:
            raise ValueError("fidelity needs next-token log-probabilities")
        gap_EV = output.logprobs_EV.exp() - clean.logprobs_EV.exp()
        return 1 - gap_EV.abs().sum(1) / 2

    def base_like(self, output: Output, clean: Output, least: float) -> Tensor:
        """Bool [E]: a recovered output that is near the clean one, not merely past the margin."""
        return self.fidelity(output, clean) >= least

    def figures(self, output: Output, clean: Output) -> dict[str, Tensor]:
        """Further figures [E] of recovered outputs that the task's field asks for."""
        return {}
