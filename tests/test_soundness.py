"""The rules of soundness: what a row's numbers must mean, each with a test that breaks with it.

Rule 2 for generated tokens is tested in `recovery/test_generation.py`, the formulas of drift and
of intervals in `scoring/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, get_args

import pytest
import torch
from saebench_recovery.attacks._ascent import random_direction
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.attacks.random_direction import RandomDirection
from saebench_recovery.attacks.unconstrained import Unconstrained
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery import registry
from saebench_recovery.base.catalogue import BUILT_IN
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import (
    Attack,
    Defense,
    Example,
    Output,
    Perturbation,
    ResidualDelta,
    Split,
)
from saebench_recovery.model.batch import batch
from saebench_recovery.model.defended import DefendedModel, Trace
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.drift import Reading, drift, scopes
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.schema import Row
from saebench_recovery.scoring import attack_and_score as chunk
from saebench_recovery.scoring.attack_and_score import Flip
from saebench_recovery.scoring.evaluate import Evaluation, evaluate, valid_flips
from saebench_recovery.scoring.passes import whole_pass
from saebench_recovery.spec import RunSpec, ThreatModel
from saebench_recovery.targets.target import Target
from tests.tiny import BOS, SITES, WIDTH, TinyTask, shared_target, tiny_model, tiny_target

DEFENSES = tuple(BUILT_IN["defense"])
THREAT_MODELS: tuple[ThreatModel, ...] = get_args(ThreatModel)
SITE, LATER_SITE = map(Site.parse, SITES)
BUDGET = 0.5
STEPS = {"steps": 15}
FEW_LATENTS = {"latents": 8}  # of 32 dimensions, so that a null space remains


def defense(name: str, **config: Any) -> Defense:
    made = registry.create("defense", name, {**FEW_LATENTS, **config})
    assert isinstance(made, Defense)
    return made


def clamp() -> Clamp:
    """Weak enough to leave the defended latents on: their drift has something to refer to."""
    return Clamp(Clamp.Config(**FEW_LATENTS, multiplier=0.3))


def run(
    defense: Defense,
    attack: Attack,
    *,
    task: TinyTask | None = None,
    target: Target | None = None,
    **spec: Any,
) -> Evaluation:
    """One row on a tiny target; the spec's names are not looked up."""
    settings = {"budget": BUDGET, "limit": 12, **spec}
    target = target or shared_target("gpt2")
    return evaluate(target, task or TinyTask(), defense, attack, RunSpec(**settings), quiet)


def quiet(what: str, done: int, total: int) -> None: ...


@cache
def standard(attack: Literal["nothing", "orthogonal", "unconstrained"]) -> Evaluation:
    """The row of a clamp against an attack with nothing unusual about it."""
    makers: dict[str, Callable[[], Attack]] = {
        "nothing": Zero,
        "orthogonal": orthogonal,
        "unconstrained": unconstrained,
    }
    return run(clamp(), makers[attack](), limit=None)


def orthogonal(**config: Any) -> Orthogonal:
    return Orthogonal(Orthogonal.Config(**STEPS, **config))


def unconstrained(**config: Any) -> Unconstrained:
    return Unconstrained(Unconstrained.Config(**STEPS, **config))


class Zero(Attack):
    """Does nothing, and says that it succeeded."""

    recovered = True

    def search(self, problem: Problem) -> ResidualDelta:
        return problem.zeros()


class Seen(Orthogonal):
    """Keeps the problems that it was handed."""

    def __init__(self) -> None:
        super().__init__(Orthogonal.Config(steps=2))
        self.problems: list[Problem] = []

    def search(self, problem: Problem) -> ResidualDelta:
        self.problems.append(problem)
        return super().search(problem)


def a_problem(threat_model: ThreatModel = "reclamp") -> Problem:
    """The problem that an attack on a clamp is handed."""
    seen = Seen()
    run(clamp(), seen, threat_model=threat_model)
    return seen.problems[0]


# --- rule 1: one detector, and doing nothing scores nothing -----------------------------------


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
@pytest.mark.parametrize("name", DEFENSES)
def test_doing_nothing_recovers_nothing(name: str, threat_model: ThreatModel) -> None:
    row = run(defense(name), Zero(), threat_model=threat_model).row
    assert row.examples.valid > 0
    assert row.recovery.k == row.constrained.k == row.base_like.k == row.zero_reactivation.k == 0
    assert row.controls.nothing.k == 0
    assert row.controls.nothing.n == row.recovery.n == row.examples.valid
    assert all(point.recovery.k == 0 for point in row.curve.points)


def test_valid_flips_that_recover_by_themselves_are_flagged() -> None:
    class Forgetful(Clamp):
        """Stops defending once the valid flips have been chosen."""

        calls = 0

        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            self.calls += 1
            return super().intervene(site, resid_BTD) if self.calls == 1 else resid_BTD

    row = run(Forgetful(Clamp.Config(**FEW_LATENTS)), Zero()).row
    assert row.controls.nothing.k > 0
    assert "nothing-recovers" in row.flags


def test_one_detector_judges_clean_defended_and_recovered() -> None:
    least = 0.5

    class Strict(TinyTask):
        def behaviour(self, output: Output) -> Tensor:
            return self.objective(output) > least

    scored = run(clamp(), orthogonal(margin=0.5), task=Strict(), limit=None)
    assert scored.row.examples.valid == len(scored.examples) > 0
    for line in scored.examples:
        assert line.objective_clean > least >= line.objective_defended
        assert line.recovered == (line.objective_recovered > least)
    # A detector of the margin's sign would have counted these as flips and as recovered.
    lenient = standard("orthogonal").row.examples
    assert lenient.base > scored.row.examples.base
    assert any(0 < line.objective_recovered <= least for line in scored.examples)


def test_a_positive_margin_is_an_argmax() -> None:
    scores_EC = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    output = Output((), scores_EC)
    assert torch.equal(TinyTask().behaviour(output), scores_EC.argmax(1) == 0)


# --- rule 2: every row of a delta acts when it is scored --------------------------------------


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_every_row_of_a_delta_changes_the_residual_that_is_scored(
    threat_model: ThreatModel,
) -> None:
    active, examples = fitted(clamp(), threat_model), evaluation()[:6]
    delta = random_delta([[len(e.prompt) // 2, len(e.prompt) - 1] for e in examples])
    without, with_delta = trace_of(active, examples), trace_of(active, examples, delta)
    moved = (
        with_delta.before[SITE] - without.before[SITE]
        if threat_model == "reclamp"
        else with_delta.after[SITE] - without.after[SITE]
    )
    for e, example in enumerate(examples):
        rows = {
            int(p): v for p, v in zip(delta.positions_EP[e], delta.values[SITE][e], strict=True)
        }
        for position in range(len(example.prompt)):
            wanted_D = rows.get(position, torch.zeros(WIDTH))
            torch.testing.assert_close(moved[e, position], wanted_D, rtol=1e-4, atol=1e-5)


def test_perturbations_are_replayed_from_their_tensors() -> None:
    """What is stored is what was scored: the same margins come back in a fresh pass."""
    scored = standard("orthogonal")
    delta = ResidualDelta.from_tensors(scored.perturbations)
    by_id = {e.id: e for e in evaluation()}
    examples = [by_id[line.id] for line in scored.examples]
    output = whole_pass(
        fitted(clamp()), TinyTask(), batch(examples), Meter(), delta, distribution=False
    )
    wanted = torch.tensor([line.objective_recovered for line in scored.examples])
    torch.testing.assert_close(TinyTask().objective(output), wanted, rtol=1e-4, atol=1e-5)


def test_a_tail_that_disagrees_with_the_whole_pass_is_flagged() -> None:
    class Spoiler(Zero):
        """Changes the cached residual that the tail starts from."""

        def search(self, problem: Problem) -> ResidualDelta:
            problem.start.resid_RQD.mul_(1.5)
            return super().search(problem)

    row = run(clamp(), Spoiler()).row
    assert row.recovery.k == 0
    assert "tail-disagrees" in row.flags


# --- an attack cannot report its own success --------------------------------------------------


class Overspending(Attack):
    """Returns a delta far too long."""

    def search(self, problem: Problem) -> ResidualDelta:
        zeros = problem.zeros()
        return replace(zeros, values={s: v + 1e3 for s, v in zeros.values.items()})


class Bribing(Overspending):
    """Also raises its own budget, and the norm that it is relative to."""

    def search(self, problem: Problem) -> ResidualDelta:
        problem.budget_N.mul_(1e3)
        problem.scale_N.mul_(1e3)
        return super().search(problem)


class Lawless(Overspending):
    """Replaces the driver that clips."""

    def run(self, problem: Problem) -> ResidualDelta:  # type: ignore[misc]
        return self.search(problem)


@pytest.mark.parametrize("attack", [Overspending(), Bribing(), Lawless()], ids=type)
def test_an_attack_that_overspends_is_clipped(attack: Attack) -> None:
    scored = run(clamp(), attack)
    by_id = {e.id: e for e in evaluation()}
    examples = [by_id[line.id] for line in scored.examples]
    resid_ED = trace_of(fitted(clamp()), examples).after[SITE]
    resid_ED = resid_ED[torch.arange(len(examples)), last_of(examples)]
    norm_E = ResidualDelta.from_tensors(scored.perturbations).norm_E()
    torch.testing.assert_close(norm_E, BUDGET * resid_ED.norm(dim=1), rtol=1e-5, atol=0)
    assert max(line.relative_norm or 0 for line in scored.examples) <= BUDGET * (1 + 1e-5)


@pytest.mark.parametrize("name", ["orthogonal", "unconstrained", "random-direction"])
@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_no_attack_exceeds_the_budget(name: str, threat_model: ThreatModel) -> None:
    attack = registry.create("attack", name, {} if name == "random-direction" else STEPS)
    assert isinstance(attack, Attack)
    problem = a_problem(threat_model)
    found = attack.run(problem)
    assert isinstance(found, ResidualDelta)
    assert (found.norm_E() <= problem.budget_N * (1 + 1e-5)).all()


def misplaced(problem: Problem, **changes: Any) -> ResidualDelta:
    return replace(problem.zeros(), **changes)


CHEATS: Mapping[str, Callable[[Problem], Any]] = {
    "other positions": lambda p: misplaced(p, positions_EP=p.positions_NP - 1),
    "other sites": lambda p: misplaced(p, values={LATER_SITE: p.zeros().values[SITE]}),
    "more sites": lambda p: misplaced(
        p, values={**p.zeros().values, LATER_SITE: p.zeros().values[SITE]}
    ),
    "NaN": lambda p: misplaced(p, values={SITE: p.zeros().values[SITE] / 0}),
    "infinity": lambda p: misplaced(p, values={SITE: p.zeros().values[SITE] + torch.inf}),
    "other examples": lambda p: p.zeros().rows(torch.arange(1)),
    "another width": lambda p: misplaced(p, values={SITE: p.zeros().values[SITE][..., :1]}),
    "another type": lambda p: "it worked",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_an_attack_that_returns_something_else_is_refused(cheat: str) -> None:
    class Cheat(Attack):
        def search(self, problem: Problem) -> Perturbation:
            returned: Perturbation = CHEATS[cheat](problem)
            return returned

    with pytest.raises((ValueError, TypeError)):
        run(clamp(), Cheat())


# --- rule 3: orthogonal means orthogonal ------------------------------------------------------


class GradientProjected(Attack):
    """The published way: the gradient is projected, then Adam rescales each coordinate."""

    constrained = True

    def search(self, problem: Problem) -> ResidualDelta:
        delta = problem.zeros()
        leaf = delta.values[SITE].requires_grad_()
        adam = torch.optim.Adam([leaf], lr=0.1)
        for _ in range(STEPS["steps"]):
            grad = problem.gradient(delta)[1][SITE]
            leaf.grad = -problem.constraints[SITE].project(grad)
            adam.step()
        return replace(delta, values={SITE: leaf.detach()})


def dictionaries(
    normalisation: Literal["none", "layer_norm", "constant_norm_rescale"],
) -> Target:
    """A target whose SAEs normalise their input."""
    target = tiny_target("gpt2")
    centred = normalisation == "layer_norm"
    for site, sae in target.dictionaries.items():
        encoder = sae.encoder_DM - sae.encoder_DM.mean(0) if centred else sae.encoder_DM
        changed = replace(sae, normalisation=normalisation, centred=centred, encoder_DM=encoder)
        target.dictionaries[site] = changed  # type: ignore[index]
    return target


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
@pytest.mark.parametrize("positions", ["readout", "all"])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
def test_orthogonal_stays_orthogonal(
    normalisation: Any, positions: str, threat_model: ThreatModel
) -> None:
    target = dictionaries(normalisation)
    attack = orthogonal(positions=positions)
    row = run(clamp(), attack, target=target, threat_model=threat_model).row
    assert row.constraint.kind == "exact"
    assert row.recovery.k > 0
    assert row.recovery.k == row.constrained.k
    for scope in ("perturbed", "readout"):
        largest = row.drift[scope].relative_l2.max
        assert largest is not None
        assert largest <= 1e-4
    assert "constraint-broken" not in row.flags


@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_projecting_only_the_gradient_is_not_orthogonal(threat_model: ThreatModel) -> None:
    row = run(clamp(), GradientProjected(), threat_model=threat_model).row
    assert row.recovery.k > 0
    assert row.drift["perturbed"].relative_l2.mean is not None
    assert row.drift["perturbed"].relative_l2.mean > 1e-2
    assert "constraint-broken" in row.flags


# --- rule 4: drift ----------------------------------------------------------------------------


def test_drift_scopes_are_separate() -> None:
    """A delta in the middle moves latents there and, at a later site, at later positions."""
    examples = evaluation()[:8]
    middle = [[len(e.prompt) // 2] for e in examples]
    delta = random_delta(middle)

    def drift_at(site: Site) -> dict[str, Tensor]:
        many = clamp()
        many.latents = {site: shared_target("gpt2").dictionary(site).defended(torch.arange(40))}
        active, laid = DefendedModel(shared_target("gpt2"), many, "post"), batch(examples)
        readings = []
        for moved in (None, delta):
            trace = trace_of(active, examples, moved)
            readings.append(Reading(trace.z, trace.p))
        found = drift(readings[0], readings[1], readings[0], many.latents, scopes(laid, middle_EP))
        return {name: scope.metrics["l2"] for name, scope in found.items()}

    middle_EP = torch.tensor(middle)
    here, downstream = drift_at(SITE), drift_at(LATER_SITE)
    assert (here["perturbed"] > 0).all()
    assert (here["readout"] == 0).all()
    assert (here["later"] == 0).all()
    assert (downstream["readout"] > 0).all()
    assert (downstream["later"] > 0).all()


def test_scopes_cover_perturbed_readout_and_later_positions() -> None:
    example = Example("", (BOS, 5, 6, 7, 8), ((11,), (21,)))
    shorter = Example("", (BOS, 5, 6), ((11,), (21,)))
    found = scopes(batch([example, shorter]), torch.tensor([[1, 3], [2, -1]]))
    assert found["perturbed"].int().tolist() == [[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]
    assert found["readout"].int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]
    assert found["later"].int().tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]


def test_latents_of_a_half_precision_model_are_read_in_float32() -> None:
    target = tiny_target("llama", model=tiny_model("llama").bfloat16())
    active = fitted(clamp(), target=target)
    trace = trace_of(active, evaluation()[:3])
    for read in (trace.z[SITE], trace.p[SITE], trace.before[SITE], trace.after[SITE]):
        assert read.dtype == torch.float32
    # Not merely converted after the fact: a bfloat16 product would be on a coarse grid.
    assert not torch.equal(trace.p[SITE], trace.p[SITE].bfloat16().float())


class AlongLatent(Attack):
    """Spends the budget in the direction of the first defended latent."""

    def search(self, problem: Problem) -> ResidualDelta:
        assert problem.active.defense is not None
        direction_D = problem.active.defense.latents[SITE].columns_DS[:, 0]
        moved = {s: v + 1e3 * direction_D for s, v in problem.zeros().values.items()}
        return replace(problem.zeros(), values=moved)


def test_relative_drift_is_null_where_the_defended_latents_are_silent() -> None:
    """Inverted latents switch off, so that there is nothing for drift to be relative to."""
    inverting = Clamp(Clamp.Config(**FEW_LATENTS, multiplier=-2.0))
    scored = run(inverting, AlongLatent(), threat_model="post")
    silent = [line for line in scored.examples if line.drift["perturbed"]["relative_l2"] is None]
    assert silent
    assert any((line.drift["perturbed"]["l2"] or 0) > 0 for line in silent)
    assert scored.row.drift["perturbed"].relative_l2.n == len(scored.examples) - len(silent)


def test_each_example_has_its_own_drift() -> None:
    scored = standard("unconstrained")
    drifts = [line.drift["perturbed"]["l2"] for line in scored.examples]
    assert len(set(drifts)) == len(drifts) > 1


# --- rule 5: attacks are compared on the same terms -------------------------------------------


def test_every_attack_gets_the_same_flips_budget_and_positions() -> None:
    first, second = a_problem(), a_problem()
    assert first.examples == second.examples
    for name in ("budget_N", "scale_N", "goal_N", "positions_NP"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    made = [standard("nothing"), standard("orthogonal"), standard("unconstrained")]
    assert len({tuple(line.id for line in scored.examples) for scored in made}) == 1
    assert len({scored.row.examples for scored in made}) == 1
    assert len({tuple(p.budget for p in scored.row.curve.points) for scored in made}) == 1


@pytest.mark.parametrize("attack", [orthogonal(), RandomDirection()], ids=["search", "random"])
def test_results_do_not_depend_on_how_examples_are_batched(attack: Attack) -> None:
    """Neither figures nor random draws: an example's result is its own."""
    whole = run(clamp(), attack)
    parts = run(clamp(), attack, batch_size=3)
    assert len(whole.examples) > 3
    assert [line.id for line in parts.examples] == [line.id for line in whole.examples]
    for one, other in zip(parts.examples, whole.examples, strict=True):
        assert one.recovered == other.recovered
        assert one.objective_recovered == pytest.approx(other.objective_recovered, rel=1e-3)
        assert one.relative_norm == pytest.approx(other.relative_norm, rel=1e-3)


# --- rule 6: selection data is not evaluation data --------------------------------------------


class Overlapping(TinyTask):
    """One selection prompt is also an evaluation prompt."""

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        found = super().examples(target, split)
        if split != "evaluation":
            return found
        return [replace(super().examples(target, "selection")[0], id="again"), *found]


def test_overlap_of_selection_and_evaluation_is_refused() -> None:
    with pytest.raises(UserError, match="selection and evaluation share a prompt"):
        run(clamp(), Zero(), task=Overlapping())


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_is_fitted_without_evaluation_data(name: str) -> None:
    asked: list[Split] = []

    class Watched(TinyTask):
        def examples(self, target: Target, split: Split) -> Sequence[Example]:
            asked.append(split)
            return super().examples(target, split)

    defense(name).fit(shared_target("gpt2"), Watched())
    assert "selection" in asked
    assert "evaluation" not in asked


def test_what_an_attack_learns_from_is_not_scored() -> None:
    whole = standard("nothing")
    scored = run(clamp(), orthogonal(shared=True), limit=None)
    assert scored.row.examples.valid == whole.row.examples.valid
    assert scored.row.examples.learned + len(scored.examples) == scored.row.examples.valid
    assert 0 < scored.row.examples.learned < scored.row.examples.valid
    kept = {line.cluster for line in scored.examples}
    ids = {line.id for line in scored.examples}
    assert kept.isdisjoint(line.cluster for line in whole.examples if line.id not in ids)


# --- rule 7: controls -------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [orthogonal(), unconstrained()], ids=type)
def test_random_control_has_the_norm_and_the_constraint_of_the_attack(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Problem, ResidualDelta]] = []

    def watched(problem: Problem, *args: Any) -> ResidualDelta:
        drawn.append((problem, random_direction(problem, *args)))
        return drawn[-1][1]

    monkeypatch.setattr(chunk, "random_direction", watched)
    scored = run(clamp(), attack)
    ((problem, control),) = drawn
    found = ResidualDelta.from_tensors(scored.perturbations)
    torch.testing.assert_close(control.norm_E(), found.norm_E(), rtol=1e-4, atol=1e-6)
    inside = problem.constraints[SITE].project(control.values[SITE])
    assert torch.allclose(inside, control.values[SITE], atol=1e-5) == attack.constrained
    assert not torch.allclose(control.values[SITE], found.values[SITE])


class Alike(TinyTask):
    """Its wrong answer is as good as its right one."""

    wrong = (56,)


class ThreeAnswers(TinyTask):
    """Knows no wrong answer of its own."""

    candidates = ((22,), (12,), (11,))
    wrong = None


@pytest.mark.parametrize("task", [TinyTask(), ThreeAnswers()], ids=["given", "chosen"])
def test_wrong_target_is_never_the_right_answer(task: TinyTask) -> None:
    for flip in flips_of(task):
        assert flip.wrong.candidates[0] not in (flip.example.candidates[0],)
        assert set(flip.example.candidates) <= set(flip.wrong.candidates)
        assert flip.wrong.prompt == flip.example.prompt


def test_chosen_wrong_target_is_not_what_the_defended_model_says() -> None:
    task = ThreeAnswers()
    flips, active = flips_of(task), fitted(clamp(), task=task)
    output = whole_pass(active, task, batch([flip.wrong for flip in flips]), Meter())
    assert not task.behaviour(output).any()


def test_a_wrong_answer_that_needs_no_injection_is_not_counted_as_injected() -> None:
    """The tiny task's own wrong answer is what the defended model says after some prompts."""
    task, active = TinyTask(), fitted(clamp())
    flips = flips_of(task)
    output = whole_pass(active, task, batch([flip.wrong for flip in flips]), Meter())
    said = int(task.behaviour(output).sum())
    assert said > 0
    assert standard("nothing").row.controls.wrong_target.k == 0
    assert standard("unconstrained").row.controls.wrong_target.k <= len(flips) - said


def test_a_task_without_any_wrong_answer_is_refused() -> None:
    class TwoAnswers(TinyTask):
        wrong = None

    with pytest.raises(UserError, match="no wrong target"):
        run(clamp(), Zero(), task=TwoAnswers())


def test_a_wrong_answer_that_is_right_is_refused() -> None:
    class Right(TinyTask):
        wrong = TinyTask.candidates[0]

    with pytest.raises(UserError, match="no wrong target"):
        run(clamp(), Zero(), task=Right())


def test_recovery_that_overshoots_is_not_base_like() -> None:
    """The output of a large delta is far from the clean one, although the behaviour is back."""
    row = run(clamp(), unconstrained(margin=100.0), budget=5.0).row
    assert row.recovery.rate == 1
    assert row.base_like.k < row.recovery.k


# --- rule 8: denominators ---------------------------------------------------------------------


class Idle(Clamp):
    """Defends nothing."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD


def test_without_valid_flips_rates_are_null_and_flagged() -> None:
    scored = run(Idle(Clamp.Config(**FEW_LATENTS)), orthogonal())
    row = scored.row
    assert row.examples.valid == 0
    assert row.examples.base > 0
    assert "no-valid-flips" in row.flags
    rates = (row.recovery, row.constrained, row.base_like, row.zero_reactivation)
    controls = (row.controls.nothing, row.controls.random_direction, row.controls.wrong_target)
    for rate in (*rates, *controls, *(p.recovery for p in row.curve.points)):
        assert (rate.n, rate.rate, rate.low, rate.high) == (0, None, None, None)
    assert row.fidelity.mean is row.norm.mean is row.curve.median_norm_recovers is None
    assert scored.examples == []
    assert scored.perturbations == {}
    assert Row.model_validate_json(row.model_dump_json()) == row


def test_few_valid_flips_are_flagged() -> None:
    few, enough = run(clamp(), Zero(), limit=8).row, standard("nothing").row
    assert few.examples.valid < 20 <= enough.examples.valid
    assert "few-valid-flips" in few.flags
    assert "few-valid-flips" not in enough.flags


@pytest.mark.parametrize("name", DEFENSES)
def test_every_number_is_finite_or_null(name: str) -> None:
    scored = run(defense(name), unconstrained())
    for written in (scored.row, *scored.examples):
        text = written.model_dump_json()
        assert not {"NaN", "Infinity", "-Infinity"} & set(text.replace(",", ":").split(":"))
        assert type(written).model_validate_json(text) == written
        assert all(math.isfinite(number) for number in numbers(written.model_dump()))


def numbers(value: object) -> list[float]:
    if isinstance(value, Mapping):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list | tuple):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, float) else []


# --- rules 9 and 10: broken models, blind attacks ---------------------------------------------


class Breaking(Clamp):
    """Stops the behaviour by destroying the residual stream."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)).expand_as(resid_BTD)


def test_a_defense_that_breaks_the_model_is_shown_to() -> None:
    broken = run(Breaking(Clamp.Config(**FEW_LATENTS)), Zero()).row
    idle = run(Idle(Clamp.Config(**FEW_LATENTS)), Zero()).row
    assert "defense-breaks-model" in broken.flags
    assert "defense-breaks-model" not in idle.flags
    assert idle.side_effects.retain_accuracy_clean == 1
    assert idle.side_effects.retain_accuracy_defended == 1
    assert idle.side_effects.kl == pytest.approx(0, abs=1e-6)
    assert idle.side_effects.ce_increase == pytest.approx(0, abs=1e-6)
    assert broken.side_effects.retain_accuracy_defended is not None
    assert broken.side_effects.retain_accuracy_defended < 0.9
    assert broken.side_effects.kl is not None
    assert broken.side_effects.kl > 0.1


def test_an_attack_without_a_gradient_is_flagged() -> None:
    class Detached(Clamp):
        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            return super().intervene(site, resid_BTD.detach())

    row = run(Detached(Clamp.Config(**FEW_LATENTS)), orthogonal()).row
    assert row.examples.valid > 0
    assert "no-gradient" in row.flags
    assert "no-gradient" not in standard("orthogonal").row.flags


def test_injection_that_is_as_easy_as_recovery_is_flagged() -> None:
    row = run(clamp(), unconstrained(), task=Alike(), budget=1.0).row
    assert row.controls.wrong_target.rate == row.recovery.rate == 1
    assert "injection-as-easy" in row.flags


def test_random_direction_that_recovers_as_much_is_flagged() -> None:
    row = run(clamp(), RandomDirection(), budget=2.0).row
    assert row.recovery.k > 0
    assert "random-recovers" in row.flags
    assert "random-recovers" not in standard("orthogonal").row.flags


def test_zero_budget_is_flagged() -> None:
    row = run(clamp(), orthogonal(), budget=0.0).row
    assert row.recovery.k == 0
    assert "zero-budget" in row.flags


def test_attack_and_scoring_are_billed_apart() -> None:
    idle, busy = standard("nothing").row.compute, standard("orthogonal").row.compute
    assert idle.attack.backward == 0
    assert busy.attack.backward > 0
    assert busy.attack.flops > idle.attack.flops
    assert idle.scoring.forward > 0
    assert busy.scoring.backward == idle.scoring.backward  # what the attack did is not in it


# --- what is spared, and what runs again ------------------------------------------------------


class Everywhere(Clamp):
    """Moves every token it is given."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD + 100


@pytest.mark.parametrize("include_bos", [False, True])
def test_bos_and_padding_are_spared_by_the_defense(include_bos: bool) -> None:
    everywhere = Everywhere(Clamp.Config(**FEW_LATENTS, include_bos=include_bos))
    active, examples = fitted(everywhere), evaluation()[:8]
    laid, trace = batch(examples), trace_of(active, examples)
    moved_RQ = (trace.after[SITE] != trace.before[SITE]).any(2)
    wanted_RQ = laid.mask_RQ & (include_bos | (laid.position_RQ > 0))
    assert not laid.mask_RQ.all()
    assert torch.equal(moved_RQ, wanted_RQ)


@pytest.mark.parametrize("positions", ["task", "readout", "all"])
def test_bos_and_padding_are_never_perturbed_by_default(positions: str) -> None:
    seen = Seen()
    seen.config = Orthogonal.Config(steps=2, positions=positions)
    run(clamp(), seen)
    for problem in seen.problems:
        for example, row_P in zip(problem.examples, problem.positions_NP.tolist(), strict=True):
            perturbed = [p for p in row_P if p >= 0]
            assert perturbed
            assert 0 < min(perturbed) <= max(perturbed) < len(example.prompt)


def test_reclamp_undoes_a_delta_inside_the_defended_direction() -> None:
    """One latent of unit norm is clamped to zero: whatever is added along it is taken away."""
    moved, without = traces_with_the_latent_raised("reclamp")
    torch.testing.assert_close(moved.after[SITE], without.after[SITE], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.z[SITE], without.z[SITE], rtol=0, atol=1e-5)


def test_post_leaves_a_delta_inside_the_defended_direction() -> None:
    moved, without = traces_with_the_latent_raised("post")
    assert (moved.after[SITE] - without.after[SITE]).norm(dim=2).amax() > 10
    assert moved.z[SITE].amax() > 10


def traces_with_the_latent_raised(threat_model: ThreatModel) -> tuple[Trace, Trace]:
    """Passes in which one defended latent is raised by 20, and without the delta."""
    target = shared_target("gpt2")
    zero = Clamp(Clamp.Config(latents=1, value=0.0, positive_only=False))
    zero.latents = {SITE: target.dictionary(SITE).defended(torch.tensor([7]))}
    active, examples = DefendedModel(target, zero, threat_model), evaluation()
    bare = trace_of(DefendedModel(target, None), examples)
    on = zero.latents[SITE].read(bare.after[SITE])[:, :, 0] > 0
    # Where it is on, the clamp also takes away its own activation: the delta alone is compared.
    examples = [e for i, e in enumerate(examples) if on[i, len(e.prompt) - 1]]
    assert examples
    raised_EPD = 20 * zero.latents[SITE].columns_DS.T.expand(len(examples), 1, WIDTH)
    delta = ResidualDelta({SITE: raised_EPD}, last_of(examples)[:, None])
    return trace_of(active, examples, delta), trace_of(active, examples)


# --- bad data and bad models ------------------------------------------------------------------


@pytest.mark.parametrize("extra", [(BOS, BOS), ()], ids=["two", "none"])
def test_a_prompt_without_exactly_one_bos_is_refused(extra: tuple[int, ...]) -> None:
    class Careless(TinyTask):
        def examples(self, target: Target, split: Split) -> Sequence[Example]:
            found = super().examples(target, split)
            return [replace(e, prompt=(*extra, *e.prompt[1:])) for e in found]

    with pytest.raises(UserError, match="exactly one BOS"):
        run(clamp(), Zero(), task=Careless())


def test_encoding_adds_exactly_one_bos() -> None:
    target = shared_target("gpt2")
    assert target.encode("words").count(BOS) == 1
    assert target.encode("words")[0] == BOS


def test_a_model_that_computes_nan_is_refused() -> None:
    broken = tiny_model("gpt2")
    next(iter(broken.parameters())).data[5] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        tiny_target("gpt2", model=broken)


def test_a_defense_that_computes_nan_is_refused() -> None:
    class Nan(Clamp):
        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            return resid_BTD / 0

    with pytest.raises(UserError, match="NaN"):
        run(Nan(Clamp.Config(**FEW_LATENTS)), orthogonal())


def test_a_defense_that_changes_the_shape_is_refused() -> None:
    class Shorter(Clamp):
        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            return resid_BTD[:, 1:]

    with pytest.raises(ValueError, match="shape"):
        run(Shorter(Clamp.Config(**FEW_LATENTS)), orthogonal())


# --- helpers ----------------------------------------------------------------------------------


def evaluation() -> Sequence[Example]:
    return TinyTask().examples(shared_target("gpt2"), "evaluation")


def fitted(
    defense: Defense,
    threat_model: ThreatModel = "reclamp",
    *,
    task: TinyTask | None = None,
    target: Target | None = None,
) -> DefendedModel:
    target = target or shared_target("gpt2")
    defense.fit(target, task or TinyTask())
    return DefendedModel(target, defense, threat_model)


def flips_of(task: TinyTask) -> list[Flip]:
    active = fitted(clamp(), task=task)
    base, flips = valid_flips(active, task, task.examples(active.target, "evaluation"), Meter())
    assert base >= len(flips) > 0
    return flips


def trace_of(
    active: DefendedModel, examples: Sequence[Example], delta: ResidualDelta | None = None
) -> Trace:
    trace = Trace()
    laid = batch(examples)
    whole_pass(active, TinyTask(), laid, Meter(), delta, trace, watch=(SITE,))
    return trace


def random_delta(positions: Sequence[Sequence[int]]) -> ResidualDelta:
    positions_EP = torch.tensor(positions)
    drawn = torch.Generator().manual_seed(0)
    values_EPD = torch.randn(*positions_EP.shape, WIDTH, generator=drawn)
    return ResidualDelta({SITE: values_EPD}, positions_EP)


def last_of(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([len(e.prompt) - 1 for e in examples])
