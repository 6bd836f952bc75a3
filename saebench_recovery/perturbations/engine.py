"""The engine of a search: N windows over frozen prefixes under an active defense, run and counted.

Attacks see a `Problem`. Only what stands in this folder runs the model for them.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.drafts import Drafts
from saebench_recovery.model.examples import Example, Output
from saebench_recovery.model.forward import Start, forward
from saebench_recovery.model.generation import written
from saebench_recovery.model.meter import Meter
from saebench_recovery.model.perturbation import Perturbation, ResidualDelta
from saebench_recovery.model.roles import Judge
from saebench_recovery.model.trail import Trail
from saebench_recovery.perturbations.drift import DriftRule
from saebench_recovery.perturbations.drift_penalty import DriftPenalty
from saebench_recovery.perturbations.ledger import Ledger, secret

T = TypeVar("T")
LOOKS, WITNESSED = 4, 24  # of each part of a search, and rows of each that are kept


@dataclass(frozen=True)
class Sighting:
    """What some rows of a search were shown at one point: an objective, or latents' `readings`.

    `engine` is the search's own, to be cut down to those rows only if they are looked at again:
    that copies their prefixes. `grads` are the objective's; `length_N` is each row's budget as a
    length.
    """

    engine: Engine
    delta: ResidualDelta | None
    objective_N: Tensor | None = None
    grads: Mapping[Site, Tensor] | None = None
    length_N: Tensor | None = None
    readings: Mapping[Site, Tensor] | None = None
    index_N: Tensor | None = None  # of the engine's rows; None for all

    def of(self, index: Tensor) -> Sighting:
        """The same of some rows, without what it took to see them."""
        index = index.to(self.engine.row_N.device)

        def rows(all_N: Tensor | None) -> Tensor | None:
            return None if all_N is None else all_N[index].detach()

        def rows_of(all_N: Mapping[Site, Tensor] | None) -> Mapping[Site, Tensor] | None:
            return all_N and {site: one_N[index].detach() for site, one_N in all_N.items()}

        return Sighting(
            self.engine,
            self.delta and self.delta.rows(index).detached(),
            rows(self.objective_N),
            rows_of(self.grads),
            rows(self.length_N),
            rows_of(self.readings),
            index,
        )

    def again(self) -> Engine:
        """The engine of these rows."""
        return self.engine if self.index_N is None else self.engine.rows(self.index_N)


@dataclass
class Witness:
    """Keeps of a search that is watched what scoring repeats: a few looks, and the ledger.

    Looks are drawn evenly from all that it takes, and their rows from all of theirs, once they
    are taken: whoever shows a search something else than what is scored cannot know which.
    """

    ledger: Ledger | None = None
    looks: dict[int, Sighting] = field(default_factory=dict)
    readings: dict[int, Sighting] = field(default_factory=dict)
    _seen: Counter[bool] = field(default_factory=Counter)
    _begun: int = 0

    def watch(self, trail: Trail) -> None:
        """From now on the search is one of, or under, code of others."""
        self.ledger = Ledger(len(trail.spent_N))

    def begin(self) -> None:
        """Keep as many looks of the part of a search that begins: a longer one hides none of it."""
        self._begun += 1
        self._seen.clear()

    def see(self, look: Callable[[], Sighting], *, reading: bool = False) -> None:
        """Keep a look that has been taken, if it is drawn; what costs more to see is made then."""
        if self.ledger is None:
            return
        kept, before = self.readings if reading else self.looks, self._seen[reading]
        place = before if before < LOOKS else secrets.randbelow(before + 1)
        self._seen[reading] += 1
        if place < LOOKS:
            seen = look()
            rows = torch.randperm(seen.engine.size, generator=secret())[:WITNESSED]
            kept[place + LOOKS * self._begun] = seen.of(rows.sort().values)


@dataclass(frozen=True)
class Engine:
    """Evaluates deltas on N windows; neighbours of one prompt share its cached prefix.

    `plain` are the examples without a perturbation. `row_N` are the rows' places in `trail`, which
    keeps what the search costs each row. With `wanted_NV` (next-token log-probabilities) the
    objective is minus the KL divergence from them instead of the task's margin, and a `penalty`
    takes drift off it. Ascents that `may_round` begin on an engine that is `rounded`: its gradients
    are of passes with products in bfloat16.
    """

    active: DefendedModel
    task: Judge
    plain: tuple[Example, ...]
    batch: Batch
    start: Start
    meter: Meter
    row_N: Tensor
    trail: Trail
    drift_rule: DriftRule
    wanted_NV: Tensor | None = None
    penalty: DriftPenalty | None = None
    may_round: bool = False
    rounded: bool = False
    witness: Witness = field(default_factory=Witness)
    drafts: Drafts = field(default_factory=Drafts)

    @property
    def size(self) -> int:
        return len(self.batch.examples)

    @property
    def variants(self) -> int:
        """Neighbouring rows per prompt (budgets, right and wrong targets)."""
        return self.size // self.start.prefix_mask_EP.shape[0]

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.start.resid_RQD.shape[-1]

    def output(
        self,
        delta: ResidualDelta | None,
        *,
        distribution: bool = False,
        trace: Trace | None = None,
    ) -> Output:
        """One pass through the tail, differentiable in the delta."""
        batch, start = self.batch, self.start
        if batch.unread and trace is None and self.task.pool is None:
            batch = batch.read()
            start = start.before(batch.ids_RQ.shape[1])
        return forward(
            self.active.target,
            batch,
            self.active.edits(batch, delta, trace),
            start,
            pool=self.task.pool,
            distribution=distribution,
        )

    def read(self, delta: ResidualDelta, last: Site) -> Trace:
        """The defended sites up to the `last`, in each example's first row alone.

        One pass up to there, differentiable in the delta.
        """
        trace, batch, C = Trace(), self.batch.first_rows(), self.batch.rows_per_example
        start = replace(self.start, resid_RQD=self.start.resid_RQD[::C])
        edits = self.active.edits(batch, delta, trace)
        forward(self.active.target, batch, edits, start, pool=last)
        self.witness.see(lambda: Sighting(self, delta, readings=trace.p), reading=True)
        return trace

    def precision(self) -> AbstractContextManager[object]:
        """That of the passes that gradients are taken of."""
        if not self.rounded:
            return nullcontext()
        return torch.autocast(self.row_N.device.type, torch.bfloat16)

    def objective(self, delta: ResidualDelta | None, trace: Trace | None = None) -> Tensor:
        """The objective [N] with its graph, and a trace of the defended sites if given."""
        if self.penalty is None:
            objective_N = self._aim(delta, trace)
            if self.witness.ledger is not None and delta is not None and not self.rounded:
                self.witness.ledger.note(self.row_N, delta, objective_N)
            return objective_N
        recorded = trace or Trace()
        return self.penalty.penalised(self._aim(delta, recorded), recorded)

    def _aim(self, delta: ResidualDelta | None, trace: Trace | None) -> Tensor:
        if self.wanted_NV is None:
            return self.task.objective(self.output(delta, trace=trace))
        shown_NV = self.output(delta, distribution=True, trace=trace).logprobs_EV
        assert shown_NV is not None
        return -(self.wanted_NV.exp() * (self.wanted_NV - shown_NV)).sum(1)

    def written(self, examples: Sequence[Example], delta: ResidualDelta | None) -> tuple[str, ...]:
        """What the defended model writes after each of these prompts."""
        most, drafts = self.task.new_tokens, self.drafts
        return self.booked(lambda: written(self.active, examples, most, delta, drafts))

    def reached(
        self, objective_N: Tensor, goal_N: Tensor, perturbation: Perturbation | None = None
    ) -> Tensor:
        """Note on the trail which rows have their objective now; minus infinity has nothing."""
        least_N = 0 if self.wanted_NV is None else goal_N
        self.trail.reach(self.row_N, objective_N > least_N, perturbation)
        return objective_N

    def booked(self, work: Callable[[], T]) -> T:
        """Do work for all rows alike, and put on their trail what it cost."""
        before = self.meter.flops
        self.trail.catch_up(before)
        result = work()
        self.trail.spend(self.row_N, (self.meter.flops - before) / self.size)
        if self.trail.known is not None:
            self.trail.known = self.meter.flops
        return result

    def groups(self, wanted_N: Tensor) -> Tensor:
        """Indices of the wanted rows, equally many of each prompt that has any.

        Equal groups go on sharing their prompt's prefix; the smaller ones are filled up with
        rows that were not wanted. Where there is no prefix to share, none are.
        """
        if self.start.prefix.length == 0:
            return wanted_N.nonzero()[:, 0]
        wanted_EV = wanted_N.view(-1, self.variants)
        width = int(wanted_EV.sum(1).amax())
        first_EV = wanted_EV.int().argsort(dim=1, descending=True, stable=True)
        chosen = torch.zeros_like(wanted_EV).scatter(1, first_EV[:, :width], value=True)
        return (chosen & wanted_EV.any(1, keepdim=True)).flatten().nonzero()[:, 0]

    def rows(self, index: Tensor) -> Self:
        """Some of the windows."""
        prompt, count = torch.unique_consecutive(index // self.variants, return_counts=True)
        if (count != count[0]).any():  # unequal groups cannot share a prefix
            prompt = index // self.variants
        C = self.batch.rows_per_example
        row = (index[:, None] * C + torch.arange(C, device=index.device)).flatten()
        return replace(
            self,
            plain=tuple(self.plain[i] for i in index.tolist()),
            batch=self.batch.rows(index),
            start=self.start.rows(row, prompt),
            row_N=self.row_N[index],
            wanted_NV=None if self.wanted_NV is None else self.wanted_NV[index],
            penalty=self.penalty and self.penalty.rows(index),
        )

    def counting_on(self, meter: Meter) -> Self:
        """The same windows, their work booked elsewhere and on no trail."""
        trail = Trail(len(self.trail.spent_N), self.trail.spent_N.device)
        return replace(self, meter=meter, trail=trail)
