"""Attack a chunk of valid flips, replay what it found, and run the controls beside it.

Every figure of a `Scored` example comes from a replay under the active defense: of the returned
perturbation from the tokens (headline budget), or through the model's tail (curve, controls).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saebench_recovery import schema
from saebench_recovery.attacks._ascent import random_direction
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import (
    Attack,
    Example,
    Perturbation,
    ResidualDelta,
    Task,
    TokenSuffix,
)
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.meter import Meter, Trail
from saebench_recovery.perturbations.build import build
from saebench_recovery.perturbations.constraints import Constraint
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.suffix import SuffixProblem, build_suffix, random_suffix
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.scoring.replay import Replay
from saebench_recovery.spec import Limits

RESTORED = 0.05  # nats of KL from the clean distribution at which it counts as restored
# Relative; the noise of a deep model stays well below, in float32 and where it is rounded more.
TAIL_TOLERANCE, ROUNDED_TAIL_TOLERANCE = 1e-3, 0.1
BISECTIONS = 6  # of the smallest norm that recovers: a factor of 64, to one part in 64


@dataclass(frozen=True)
class Flip:
    """A valid flip: the clean model shows the behaviour, the defended model does not."""

    example: Example
    clean: float
    defended: float
    wrong: Example  # the same, asking for an answer that neither gives


@dataclass(frozen=True)
class Setting:
    """What all chunks of a row have in common."""

    active: DefendedModel
    task: Task
    attack: Attack
    budgets: tuple[float, ...]  # ascending, the headline budget among them or, if absolute, last
    headline: float
    limits: Limits
    seed: int
    absolute: bool = False  # the headline budget is in the residual's own units
    flops: float | None = None  # that the search may spend on a problem

    @property
    def head(self) -> int:
        """Where the headline budget stands."""
        return len(self.budgets) - 1 if self.absolute else self.budgets.index(self.headline)

    @property
    def relative(self) -> tuple[float, ...]:
        """The budgets that make the curve: all but an absolute headline.

        None for tokens, which have no norm, nor for a suite, whose norms are of several kinds.
        """
        if self.attack.suffix == "tokens" or self.mixed:
            return ()
        return self.budgets[:-1] if self.absolute else self.budgets

    @property
    def mixed(self) -> bool:
        """Whether the attack stands for several."""
        return self.attack.suite() != [self.attack]

    @property
    def rounded(self) -> bool:
        """Whether the model computes in less than float32."""
        return self.active.target.dtype != torch.float32

    @property
    def variants(self) -> int:
        """Problem rows per flip: every budget, towards the right and towards a wrong answer."""
        return 2 * len(self.budgets)


@dataclass(frozen=True)
class Scored:
    """Everything a row needs from one valid flip. Lists run over the budgets."""

    flip: Flip
    attack: str
    recovered: bool
    constrained: bool
    base_like: bool
    objective: float
    fidelity: float
    relative_norm: float | None  # null, as both smallest ones are, where nothing has a norm
    curve: list[bool]
    curve_wrong: list[bool]
    wrong: bool  # a wrong answer was injected at the headline budget
    smallest: float | None
    smallest_wrong: float | None
    nothing: bool
    random: bool
    figures: Mapping[str, float]
    texts: schema.Texts | None  # of a task that generates
    switched_on: bool
    rung: bool | None  # whether the defense's detector, if it has one, rang on the perturbed prompt
    flops: float  # that the search spent
    flops_first: float  # ... when the objective was first reached; infinite if it never was
    tightest: float  # the smallest limit on relative drift that it is inside of
    drift: Mapping[str, Mapping[str, float]]  # NaN where undefined
    constraint: schema.Constraint
    blind: bool  # no gradient through the defense at the zero perturbation
    flags: frozenset[str]


def score_chunk(
    setting: Setting, flips: Sequence[Flip], attacking: Meter, scoring: Meter
) -> tuple[list[Scored], Perturbation]:
    """Attack and score some flips; also the headline perturbations, to be stored."""
    with attacking.timed():
        problem = pose(setting, flips, attacking)
        found = Attack.run(
            setting.attack, problem
        )  # the driver itself, whatever a plugin overrides
    with scoring.timed():
        return _score(setting, flips, problem.metered(scoring), found, problem.trail)


def pose(setting: Setting, flips: Sequence[Flip], meter: Meter) -> Problem:
    """The problem of recovering these flips at every budget, and of injecting wrong answers."""
    count = len(setting.budgets)
    groups = [[f.example] * count + [f.wrong] * count for f in flips]
    active, attack, task = setting.active, setting.attack, setting.task
    more = (
        torch.tensor([setting.budgets * 2] * len(flips)),
        torch.tensor([f.clean for f in flips]),
        setting.seed,
        meter,
        [setting.absolute and b == setting.head for b in range(count)] * 2,
        setting.flops,
    )
    if attack.suffix is not None:
        return build_suffix(attack.suffix, attack.length, active, task, groups, *more)
    assert active.defense is not None
    positions_EP = _positions(setting, [flip.example for flip in flips])
    problem = build(active, task, groups, positions_EP, attack.sites(active.defense), *more)
    if not setting.attack.restores:
        return problem
    wanted_EV = _clean_logprobs(setting, [f.example for f in flips], meter)
    wanted_NV = wanted_EV.repeat_interleave(setting.variants, 0)
    return problem.restoring(_swapped(problem, wanted_NV, count), RESTORED)


def _positions(setting: Setting, examples: Sequence[Example]) -> Tensor:
    """Token positions [E, P] that a residual attack perturbs, and where drift is measured."""
    each = [torch.tensor(setting.attack.positions(setting.task, e)) for e in examples]
    return pad_sequence(each, batch_first=True, padding_value=-1)


def _clean_logprobs(setting: Setting, examples: list[Example], meter: Meter) -> Tensor:
    laid = setting.active.target.batch(examples)
    clean = whole_pass(DefendedModel(setting.active.target, None), setting.task, laid, meter)
    if clean.logprobs_EV is None or laid.forced_RQ is not None:
        raise UserError(
            f"task {setting.task.name!r} is not judged by its next token, so there is no output "
            "distribution to restore; use -A objective=behaviour"
        )
    return clean.logprobs_EV


def _swapped(problem: Problem, clean_NV: Tensor, count: int) -> Tensor:
    """For wrong-target rows, the clean distribution with the right and wrong answers swapped."""
    wanted_NV = clean_NV.clone()
    for n, example in enumerate(problem.examples):
        if n % problem.variants >= count:
            right = problem.examples[n - n % problem.variants].candidates[0][0]
            wrong = example.candidates[0][0]
            wanted_NV[n, [right, wrong]] = clean_NV[n, [wrong, right]]
    return wanted_NV


def _score(
    setting: Setting,
    flips: Sequence[Flip],
    problem: Problem,
    found: Perturbation,
    trail: Trail,
) -> tuple[list[Scored], Perturbation]:
    E, B = len(flips), len(setting.budgets)
    chosen = torch.arange(E, device=problem.scale_N.device) * 2 * B + setting.head
    alone, headline = problem.rows(chosen), found.rows(chosen)
    injecting = problem.rows(chosen + B)
    nothing_E = alone.behaviour(alone.nothing())
    works_EV = problem.behaviour(found).view(E, 2 * B)
    # A wrong answer that the defended model gives by itself is not injected.
    works_EV[:, B:] &= ~injecting.behaviour(injecting.nothing())[:, None]
    constrained = setting.attack.constrained
    smallest_EV = _smallest_norms(problem, found, works_EV.flatten(), constrained).view(E, -1)
    fences = alone.fences(constrained)
    random_E = alone.behaviour(_random(alone, fences, headline))
    norm_E = headline.norm_E()
    relative = [None] * E if norm_E is None else (norm_E / alone.scale_N).tolist()
    positions_EP = _positions(setting, [flip.example for flip in flips])
    replay = Replay(alone, headline, positions_EP, setting.limits)
    recovered_E, objective_E = replay.recovered_E, replay.objective_E
    margin_E = replace(alone, wanted_NV=None).objective(headline)
    gap_E = (objective_E - margin_E).abs() / (1 + objective_E.abs())
    tolerance = ROUNDED_TAIL_TOLERANCE if setting.rounded else TAIL_TOLERANCE
    lost_E = torch.zeros_like(recovered_E)
    if isinstance(headline, TokenSuffix):
        lost_E = (headline.ids_EL < 0).all(1)
    blind_E = _blind(alone)
    constraint = setting.attack.promise(alone)
    scored = []
    for e, flip in enumerate(flips):
        scored.append(
            Scored(
                flip=flip,
                attack=setting.attack.name,
                recovered=bool(recovered_E[e]),
                constrained=bool(recovered_E[e] & replay.within_E[e]),
                base_like=bool(recovered_E[e] & replay.base_like_E[e]),
                objective=float(objective_E[e]),
                fidelity=float(replay.fidelity_E[e]),
                relative_norm=relative[e],
                curve=works_EV[e, :B].tolist(),
                curve_wrong=works_EV[e, B:].tolist(),
                wrong=bool(works_EV[e, B + setting.head]),
                smallest=_least(smallest_EV[e, :B]),
                smallest_wrong=_least(smallest_EV[e, B:]),
                nothing=bool(nothing_E[e]),
                random=bool(random_E[e]),
                figures={name: float(values[e]) for name, values in replay.figures.items()},
                texts=replay.texts(e),
                switched_on=bool(replay.switched_on_E[e]),
                rung=None if replay.rung_E is None else bool(replay.rung_E[e]),
                flops=float(trail.spent_N[chosen[e]]),
                flops_first=float(trail.first_N[chosen[e]]),
                tightest=float(replay.tightest_E[e]),
                drift={
                    scope: {name: float(values[e]) for name, values in found.metrics.items()}
                    for scope, found in replay.drift.items()
                },
                constraint=constraint,
                blind=bool(blind_E[e]),
                flags=frozenset(
                    flag
                    for flag, raised_E in {
                        "tail-disagrees": gap_E > tolerance,
                        "no-suffix": lost_E,
                    }.items()
                    if raised_E[e]
                ),
            )
        )
    return scored, headline


def _random(
    alone: Problem, fences: Mapping[Site, Constraint], headline: Perturbation
) -> Perturbation:
    """A random perturbation of the kind and size of the one that is scored."""
    norm_E = headline.norm_E()
    if norm_E is not None:
        return random_direction(alone, fences, norm_E, "control")
    assert isinstance(alone, SuffixProblem)
    return random_suffix(alone, "control")


def _smallest_norms(
    problem: Problem, found: Perturbation, works_N: Tensor, constrained: bool
) -> Tensor:
    """Relative norm [N] to which each delta can shrink and still work; inf if it does not.

    Where every look costs a generation, only the budgets themselves are compared. Tokens have no
    norm.
    """
    smallest_N = torch.full_like(problem.scale_N, torch.inf)
    index = problem.groups(works_N)
    if index.numel() == 0 or not isinstance(found, ResidualDelta):
        return smallest_N
    part, delta, works_N = problem.rows(index), found.rows(index), works_N[index]
    low_N, high_N = torch.zeros_like(part.scale_N), torch.ones_like(part.scale_N)
    for _ in range(0 if part.task.new_tokens else BISECTIONS):
        middle_N = (low_N + high_N) / 2
        enough_N = part.behaviour(part.shrunk(delta, middle_N, constrained))
        high_N = torch.where(enough_N, middle_N, high_N)
        low_N = torch.where(enough_N, low_N, middle_N)
    norm_N = delta.norm_E() * high_N / part.scale_N
    smallest_N[index] = norm_N.masked_fill(~works_N, torch.inf)
    return smallest_N


def _blind(problem: Problem) -> Tensor:
    """Bool [N]: the objective has no gradient at the zero perturbation."""
    _, grads = problem.gradient(problem.zeros())
    return torch.stack([g.flatten(1).abs().amax(1) for g in grads.values()]).amax(0) == 0


def _least(norm_B: Tensor) -> float | None:
    least = float(norm_B.min())
    return least if least < float("inf") else None
