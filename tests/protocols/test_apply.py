"""A protocol fills in what was left open, reports what was not, and stands beside the result."""

from __future__ import annotations

from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.protocols.apply import departures, experiment_of, fill
from saebench_recovery.protocols.compare import compare
from saebench_recovery.protocols.experiment import experiments
from saebench_recovery.schema import Row, RunResult
from saebench_recovery.spec import RunSpec
from tests.fakes import made, mean, rate, row


def published(**said: Any) -> RunSpec:
    return fill(RunSpec(protocol="published", **said))


def departed(spec: RunSpec) -> list[str]:
    return departures(spec.model_dump(mode="json"), experiment_of(spec))


def test_everything_unsaid_comes_from_the_experiment() -> None:
    spec = published(tasks=("ioi",))
    experiment = experiments("published")["ioi"]
    assert (spec.target, spec.tasks, spec.attack) == ("gpt2-small", ("ioi",), "orthogonal")
    for name, setting in experiment.run.items():
        assert getattr(spec, name) == setting.value
    for config in ("defense_config", "attack_config", "task_config"):
        assert getattr(spec, config) == {
            name: setting.value for name, setting in getattr(experiment, config).items()
        }
    assert departed(spec) == []


def test_without_a_protocol_nothing_happens() -> None:
    assert fill(RunSpec()) == RunSpec()


@pytest.mark.parametrize(
    "said",
    [
        {"tasks": ("ioi",)},
        {"tasks": ("tpp",), "attack": "unconstrained"},
        {"target": "gpt2-small", "defense": "ablation", "budget": 0.5, "seed": 3},
        {"tasks": ("refusal",), "attack": "random-direction", "task_config": {"requests": 8}},
    ],
)
def test_filling_twice_is_filling_once(said: dict[str, Any]) -> None:
    once = published(**said)
    assert fill(once) == once
    again = RunSpec.model_validate(once.model_dump(mode="json"))  # as read from a result
    assert fill(again).model_dump(mode="json") == once.model_dump(mode="json")


def test_the_user_wins_and_it_is_reported() -> None:
    spec = published(
        tasks=("ioi",), seed=1, limit=8, attack_config={"steps": 7}, defense_config={"value": 0.0}
    )
    assert (spec.seed, spec.attack_config["steps"]) == (1, 7)
    assert spec.attack_config["lr"] == published(tasks=("ioi",)).attack_config["lr"]
    assert departed(spec) == [
        "limit is 8, the protocol has none",
        "seed is 1, the protocol has 0",
        "value is 0.0, the protocol has -5.0",
        "steps is 7, the protocol has 100",
    ]


def test_saying_what_the_protocol_says_is_no_departure() -> None:
    said = {"seed": 0, "defense": "clamp", "target": "gpt2-small", "attack_config": {"steps": 100}}
    assert departed(published(tasks=("ioi",), **said)) == []
    assert departed(published(tasks=("tpp",), task_config={"data": "amazon"})) == []
    assert departed(published(tasks=("tpp",), task_config={"data": "mine.csv"})) == [
        "data is mine.csv, the protocol has bias-in-bios-1"
    ]


def test_settings_of_another_plugin_are_not_filled_in() -> None:
    spec = published(tasks=("ioi",), defense="ablation", attack="random-direction")
    assert spec.defense_config == spec.attack_config == {}
    assert departed(spec) == [
        "defense is ablation, the protocol has clamp",
        "attack is random-direction, the protocol has orthogonal or unconstrained",
    ]
    assert departed(published(tasks=("ioi",), defense="ablation", defense_config={"latents": 3}))[
        1:
    ] == ["latents is 3, the protocol has what the plugin does by default"]


@pytest.mark.parametrize(
    ("said", "budget"),
    [
        ({}, (20.0, "absolute")),
        ({"budget": 0.7}, (0.7, "spread")),
        ({"budget_unit": "relative"}, (RunSpec().budget, "relative")),
        ({"budget_unit": "absolute"}, (20.0, "absolute")),
        ({"budget": 5, "budget_unit": "absolute"}, (5.0, "absolute")),
    ],
)
def test_a_budget_keeps_its_unit(said: dict[str, Any], budget: tuple[float, str]) -> None:
    spec = published(tasks=("unlearning",), **said)
    assert (spec.budget, spec.budget_unit) == budget


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "has several experiments: choose one with --task; it has ioi on gpt2-small, "),
        ({"target": "gemma-2-2b-it"}, "has several experiments"),
        ({"target": "organism"}, "has no experiment of a task on organism; it has ioi on gpt2"),
        ({"target": "gemma-2-2b", "tasks": ("ioi",)}, "no experiment of ioi on gemma-2-2b;"),
        ({"tasks": ("ioi", "tpp")}, "no experiment of ioi and tpp;"),
        ({"tasks": ("mine",)}, "no experiment of mine;"),
    ],
)
def test_a_protocol_that_does_not_fit_is_one_line(said: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        published(**said)
    assert "\n" not in str(caught.value)


def test_a_target_alone_is_enough_where_it_has_one_experiment() -> None:
    assert published(target="gemma-2-2b").tasks == ("tpp",)


def test_a_target_by_parts_may_be_the_same_model() -> None:
    name = "folder/gpt2+folder/sae@blocks.4.hook_resid_pre"
    spec = published(tasks=("ioi",), target=name)
    assert departed(spec) == [f"target is {name}, the protocol has gpt2-small"]


def result(spec: RunSpec, *rows: Row) -> RunResult:
    return made(RunResult, spec=spec.model_dump(mode="json"), rows=rows)


def test_figures_of_one_row_come_with_counts_and_intervals() -> None:
    spec = published(tasks=("ioi",))
    ours = row("ioi", recovery=rate(40), drift={"readout": row().drift["perturbed"]})
    lines = {line.measure: line for line in compare(result(spec, ours), experiment_of(spec))}
    recovered = lines["recovered"]
    assert recovered.ours is not None
    assert (recovered.ours.k, recovered.ours.n, recovered.ours.value) == (40, 100, 0.4)
    assert (recovered.theirs.k, recovered.theirs.n) == (37, 37)
    assert recovered.theirs.low == pytest.approx(0.906, abs=5e-4)
    assert lines["drift of latents, L2"].ours is not None
    assert lines["logit difference"].ours is None


def test_arms_have_their_own_numbers() -> None:
    drifts = []
    for attack in ("orthogonal", "unconstrained"):
        spec = published(tasks=("ioi",), attack=attack)
        ours = row("ioi", drift={"readout": row().drift["perturbed"]})
        lines = compare(result(spec, ours), experiment_of(spec))
        drifts += [line.theirs.value for line in lines if line.measure.startswith("drift")]
    assert drifts == [0.783, 2.471]


def test_nothing_is_published_about_another_attack() -> None:
    spec = published(tasks=("ioi",), attack="random-direction")
    assert compare(result(spec, row("ioi")), experiment_of(spec)) == []


def test_several_rows_are_compared_by_their_mean_and_only_if_all_are_there() -> None:
    spec = published(tasks=("tpp",))
    classes = experiments("published")["tpp"].arms["orthogonal"].numbers[0].tasks
    rows = [row(label, recovery=rate(10 * k)) for k, label in enumerate(classes, 1)]
    lines = {line.measure: line for line in compare(result(spec, *rows), experiment_of(spec))}
    figure = lines["recovered, mean of five"].ours
    assert figure is not None
    assert figure.value == pytest.approx(0.3)
    assert figure.k is None
    assert "dentist: recovered" in lines
    assert not any(measure.startswith("surgeon") for measure in lines)
    part = {line.measure for line in compare(result(spec, *rows[1:]), experiment_of(spec))}
    assert "recovered, mean of five" not in part


def test_rows_without_valid_flips_have_no_figures() -> None:
    spec = published(tasks=("refusal",))
    empty = row(
        "refusal", constrained=0, valid=0, figures={}, drift={"perturbed": row().drift["perturbed"]}
    )
    lines = {line.measure: line for line in compare(result(spec, empty), experiment_of(spec))}
    for measure in ("complies", "non-refusal"):
        ours = lines[measure].ours
        assert ours is not None
        assert ours.value is None
    known = row("refusal", figures={"non_refusal": mean(0.75)}, drift=empty.drift)
    lines = {line.measure: line for line in compare(result(spec, known), experiment_of(spec))}
    ours = lines["non-refusal"].ours
    assert ours is not None
    assert ours.value == 0.75
