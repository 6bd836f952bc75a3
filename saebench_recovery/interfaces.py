"""All that a plugin implements: `Defense`, `Attack`, `Task`, and what passes between them.

Shape letters used throughout the project: B batch, E examples, R sequence rows of a batch,
C candidate answers, T tokens, Q tail columns, P perturbed positions, L inserted tokens, D residual
width, S defended latents, M dictionary width, V vocabulary, N items of a flat list (the rows of a
problem or prompts or tokens), K items of a short list (classes or directions or choices),
F entries of a flattened perturbation, I directions of a basis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import Indices, Plugin, PluginConfig, PluginError
from saebench_recovery.base.sites import Site, SiteName
from saebench_recovery.model.examples import Example, Output, Run
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.monitors.calibration import calibrated
from saebench_recovery.monitors.watched import Watched
from saebench_recovery.perturbations.answer_beginning import Beginning
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.suffix_embeddings import SoftSuffix
from saebench_recovery.perturbations.suffix_tokens import TokenSuffix
from saebench_recovery.sae.latents import Latents
from saebench_recovery.schema import Constraint
from saebench_recovery.targets.target import Target

__all__ = [
    "Attack",
    "Beginning",
    "Defense",
    "Example",
    "Output",
    "Perturbation",
    "Plugin",
    "PluginConfig",
    "ResidualDelta",
    "Run",
    "SoftSuffix",
    "Split",
    "Task",
    "TokenSuffix",
]

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
        own = torch.eye(scores_EC.shape[1], dtype=torch.bool, device=scores_EC.device)
        others_ECC = scores_EC[:, None, :].masked_fill(own, -torch.inf)
        return scores_EC - others_ECC.amax(2)

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
        right, wrong = example.candidates[0], example.wrong
        if wrong is None:
            margin_C = self.margins(defended)[index, : len(example.candidates)]
            others = [c for c in margin_C.argsort(descending=True).tolist() if c != 0]
            # Where a task can show several and shows all of them, the one that is shown least.
            last = others[-1] if len(others) > 1 else None
            chosen = next((c for c in others if margin_C[c] <= 0), last)
            wrong = right if chosen is None else example.candidates[chosen]
        if wrong == right:
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
        """Run-level figures of the task's field; what is handed in runs any examples."""
        return {}

    def fidelity(self, output: Output, clean: Output) -> Tensor:
        """Closeness [E] of an output to the clean one: 1 - total variation at the readout."""
        if output.logprobs_EV is None or clean.logprobs_EV is None:
            raise ValueError("fidelity needs next-token log-probabilities")
        return 1 - (output.logprobs_EV.exp() - clean.logprobs_EV.exp()).abs().sum(1) / 2

    def base_like(self, output: Output, clean: Output, least: float) -> Tensor:
        """Bool [E]: a recovered output that is near the clean one, not merely past the margin."""
        return self.fidelity(output, clean) >= least

    def figures(self, output: Output, clean: Output) -> dict[str, Tensor]:
        """Further figures [E] of recovered outputs that the task's field asks for."""
        return {}


class Defense(Watched, ABC, kind="defense"):
    """An intervention on the residual stream that should stop a behaviour.

    `sees_only_latents`: what `intervene` adds depends on the residual only by the defended latents'
    pre-activations (and its norm, where the SAE normalises its input). If not, a constrained attack
    keeps the latents in place to first order only.
    """

    sees_only_latents: ClassVar[bool] = True

    class Config(Watched.Config):
        """What every defense that selects latents can be told."""

        site: SiteName | None = Field(
            default=None, description="hook point; default: the target's own for the task"
        )
        latents: int = Field(default=32, ge=1, description="how many latents are defended")
        features: Indices | None = Field(
            default=None, description="their indices; default: the task's selection"
        )
        include_bos: bool = Field(default=False, description="intervene on BOS too")

    config: Config
    latents: Mapping[Site, Latents]
    scores: Mapping[Site, Tensor]  # the selection scores [S] of `latents`

    def fit(self, target: Target, task: Task) -> None:
        """Choose the defended latents, by default at one site; from the selection split only.

        Raises:
            UserError: see `select`.
        """
        self.defend(target, task, [target.site_for(task.name, self.config.site)])

    @final
    def defend(self, target: Target, task: Task, sites: Sequence[Site]) -> None:
        """Set `latents` and `scores` at each of these sites; see `select`."""
        chosen = {site: self.select(target, task, site) for site in sites}
        self.latents = {site: latents for site, (latents, _) in chosen.items()}
        self.scores = {site: scores for site, (_, scores) in chosen.items()}

    @final
    def select(self, target: Target, task: Task, site: Site) -> tuple[Latents, Tensor]:
        """The latents at a site with the highest scores [S] of the task's selection statistic.

        Latents that are given by their indices all score 1.

        Raises:
            UserError: no latent scores above zero, or there are not so many, or none of that index.
        """
        dictionary = target.dictionary(site)
        asked, width = self.config.latents, dictionary.width
        if self.config.features is not None:
            chosen = torch.tensor(self.config.features)
            scores = torch.ones(len(chosen), device=target.device)
            if chosen.max() >= width:
                raise UserError(f"no latent {chosen.max()} at {site}, which has {width}")
        else:
            if asked > width:
                line = f"{asked} latents asked for at {site}, which has {width}"
                raise UserError(f"{line}; give fewer with -D latents")
            top = task.attribution(target, site).topk(asked)
            chosen, scores = top.indices[top.values > 0], top.values[top.values > 0]
        if chosen.numel() == 0:
            raise UserError(f"no latent at {site} scores above zero for task {task.name!r}")
        return dictionary.defended(chosen), scores

    @abstractmethod
    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        """The residual stream as the defense leaves it: pure, differentiable, shape kept."""

    @final
    def watch(self, target: Target, task: Task) -> None:
        """Calibrate its monitor, if it is to have one, once it is fitted.

        Raises:
            UserError: see `calibrated`, or it has a detector of its own.
        """
        if self.config.monitor is not None:
            if type(self).alarm is not Watched.alarm:
                raise UserError(f"{self.title} has a detector of its own; leave out -D monitor")
            selection = task.examples(target, "selection")
            self._monitor = calibrated(self.config.monitor, target, task, self, selection)

    @final
    @property
    def features(self) -> dict[Site, tuple[int, ...]]:
        """Indices of the defended latents per site."""
        return {s: tuple(d.features.tolist()) for s, d in self.latents.items()}


class Attack(Plugin, ABC, kind="attack"):
    """A search for a perturbation that brings the behaviour back.

    `space` is the kind of perturbation that it searches (`perturbations.kinds`): rows added to
    the residual stream, tokens or embeddings of a suffix, the beginning of the answer.

    `constrained` says that it stays in the problem's constraint sets by construction; the
    scoring holds it to that and flags a row that moved the defended latents all the same.
    """

    constrained: bool = False
    space: ClassVar[str] = "residual"

    def suite(self) -> Sequence[Attack]:
        """The attacks that it stands for, each tried on what those before left unbroken."""
        return [self]

    @property
    def length(self) -> int:
        """Tokens that it puts into the prompt."""
        return 0

    def promise(self, problem: Problem) -> Constraint:
        """How the defended latents are kept in place in this problem, by construction."""
        return problem.space.promise

    @property
    def learns(self) -> bool:
        """Whether half of the valid flips go to `fit` and only the others are scored."""
        return False

    @property
    def restores(self) -> bool:
        """Whether it aims at the clean model's whole output distribution, not the margin."""
        return False

    @property
    def shortens(self) -> bool:
        """Whether `shortest` looks for the smallest norm, in place of a search at every budget."""
        return False

    def sites(self, defense: Defense) -> list[Site]:
        """Perturbed hook points, in the order of the forward pass: the first defended one."""
        return [min(defense.latents)]

    def positions(self, task: Task, example: Example) -> tuple[int, ...]:
        """Absolute token positions that may be perturbed in an example: the task's own choice."""
        return task.positions(example)

    def fit(self, problem: Problem) -> None:
        """Learn from valid flips that will not be scored; called only if `learns`."""
        raise NotImplementedError(f"attack {self.name!r} learns nothing")

    @abstractmethod
    def search(self, problem: Problem) -> Perturbation:
        """Look for a perturbation inside the problem's budget, one per example."""

    def shortest(self, problem: Problem) -> ResidualDelta:
        """The smallest perturbation of each example that it finds; called only if `shortens`."""
        raise NotImplementedError(f"attack {self.name!r} searches at given budgets")

    @final
    def run(self, problem: Problem, *, shortest: bool = False) -> Perturbation:
        """Search, then clip to the budget: an attack can neither overspend nor score itself.

        Whether the behaviour came back is decided later, by a replay of what this returns
        under the active defense. The search works on copies of what its result is held to.
        """
        search = self.shortest if shortest else self.search
        perturbation = search(problem.copied())
        try:
            return problem.admit(perturbation)
        except (TypeError, ValueError) as error:
            raise PluginError(
                self.title, f"{search.__name__}:", str(error), fault="wrong-perturbation"
            ) from error
