"""The published experiments as data: complete, consistent, and valid settings of real plugins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.protocols.compare import look_up, theirs
from saebench_recovery.protocols.experiment import (
    Experiment,
    Number,
    Setting,
    experiments,
    protocols,
)
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.organism import world
from saebench_recovery.targets.presets import preset
from tests.fakes import mean, row

PUBLISHED = experiments("published")
TASKS = sorted(PUBLISHED)
each_task = pytest.mark.parametrize("task", TASKS)


def settings(experiment: Experiment) -> Iterator[Setting]:
    for config in ("run", "defense_config", "attack_config", "task_config"):
        yield from getattr(experiment, config).values()


def values(config: dict[str, Setting]) -> dict[str, Any]:
    return {name: setting.value for name, setting in config.items()}


def numbers(experiment: Experiment) -> Iterator[Number]:
    for arm in experiment.arms.values():
        yield from arm.numbers


def test_all_four_experiments_are_there() -> None:
    assert protocols() == ["published"]
    assert TASKS == ["ioi", "refusal", "tpp", "unlearning"]
    assert {e.target for e in PUBLISHED.values()} == {"gpt2-small", "gemma-2-2b", "gemma-2-2b-it"}


@each_task
def test_settings_are_valid_for_the_plugins(task: str) -> None:
    experiment = PUBLISHED[task]
    run = values(experiment.run)
    registry.create("defense", run["defense"], values(experiment.defense_config))
    registry.create("task", task, values(experiment.task_config))
    known = registry.listing("attack")
    for attack in experiment.arms.keys() & known.keys():
        registry.create("attack", attack, values(experiment.settings_of(attack)))
    assert experiment.arm in known
    RunSpec(**run)


@each_task
def test_settings_fit_the_target(task: str) -> None:
    experiment = PUBLISHED[task]
    target = preset(experiment.target)
    site = experiment.defense_config["site"].value
    assert site in target.saes
    assert target.tasks[task].site == site


@each_task
def test_every_setting_and_difference_has_a_reason(task: str) -> None:
    experiment = PUBLISHED[task]
    assert {s.basis for s in settings(experiment)} >= {"published"}
    assert all(len(s.source.split()) > 0 for s in settings(experiment))
    assert experiment.differences
    # What the rules of soundness forbid is never reproduced.
    assert any("gradient" in d.published for d in experiment.differences)
    assert experiment.run["threat_model"].value == "post"


@pytest.mark.parametrize(
    ("task", "rate", "rows", "width"),
    [("ioi", 0.1, 1, 768), ("unlearning", 0.08, 1, 2304), ("refusal", 0.05, 48, 2304)],
)
def test_learning_rates_are_the_published_ones(
    task: str, rate: float, rows: int, width: int
) -> None:
    """Ours is the first step's norm over the budget, theirs moves every coordinate alike."""
    config, run = values(PUBLISHED[task].attack_config), values(PUBLISHED[task].run)
    assert config["lr"] * run["budget"] / math.sqrt(rows * width) == pytest.approx(rate)


@each_task
def test_numbers_name_figures_that_a_row_has(task: str) -> None:
    scopes = dict.fromkeys(("perturbed", "readout", "later"), row().drift["perturbed"])
    figures = {"non_refusal": mean(1), "cooperative": mean(1), "strict_base_like": mean(1)}
    some = row(drift=scopes, figures=figures)
    some.side_effects.figures["tpp_score"] = 0.5
    for number in numbers(PUBLISHED[task]):
        assert number.ours is None or look_up(some, number.ours) is not None, number.measure
        assert (number.k or 0) <= (number.n or 0)
        assert theirs(number).value is not None


def test_rows_of_tpp_are_its_published_classes() -> None:
    classes = {f"tpp/{c}" for data in world.load("tpp").values() for c in data["classes"].values()}
    named = {task for number in numbers(PUBLISHED["tpp"]) for task in number.tasks}
    assert named == classes
    data = PUBLISHED["tpp"].task_config["data"]
    assert {data.value, *data.also} == set(world.load("tpp"))


@pytest.mark.parametrize(
    ("task", "arm", "measure", "low", "high"),
    [
        ("unlearning", "unconstrained", "recovered", 0.959, 1.000),
        ("unlearning", "orthogonal", "recovered", 0.940, 0.998),
        ("unlearning", "soft-suffix", "recovered", 0.697, 0.862),
        ("refusal", "orthogonal", "non-refusal", 0.798, 0.993),
        ("refusal", "orthogonal", "base-like", 0.427, 0.788),
        ("refusal", "orthogonal", "base-like, strict", 0.314, 0.686),
    ],
)
def test_shares_get_the_intervals_that_were_published(
    task: str, arm: str, measure: str, low: float, high: float
) -> None:
    (number,) = (n for n in PUBLISHED[task].arms[arm].numbers if n.measure == measure)
    figure = theirs(number)
    assert figure.low == pytest.approx(low, abs=5e-4)
    assert figure.high == pytest.approx(high, abs=5e-4)


@pytest.mark.parametrize(
    "wrong", [{}, {"k": 1}, {"k": 1, "n": 2, "value": 0.5}, {"n": 2, "value": 0.5}]
)
def test_a_number_has_one_form(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give k and n, or value"):
        Number(measure="m", **wrong)


def test_default_arm_must_exist() -> None:
    with pytest.raises(ValidationError, match="no arm 'other'"):
        Experiment.model_validate({**PUBLISHED["ioi"].model_dump(), "arm": "other"})


def test_unknown_protocol() -> None:
    with pytest.raises(UserError, match="unknown protocol 'publishd'; did you mean 'published'"):
        experiments("publishd")
