"""A suite is the worst case over its attacks, each tried on what those before left unbroken."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from saebench_recovery.attacks.auto import AutoV1, AutoV2, Suite
from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery import registry
from saebench_recovery.interfaces import Attack, Perturbation
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.scoring.suite import worst_case
from saebench_recovery.spec import RunSpec
from tests.soundness.setting import clamp, orthogonal, run, unconstrained


class Two(Attack):
    """The orthogonal attack with a step, then with more."""

    name = "two"

    def suite(self) -> Sequence[Attack]:
        return [hasty(), orthogonal()]

    def search(self, problem: Problem) -> Perturbation:
        raise AssertionError("a suite is searched through its members")


class Hasty(Orthogonal):
    name = "hasty"


def hasty() -> Hasty:
    return Hasty(Hasty.Config(steps=1))


def test_what_one_attack_breaks_the_next_is_not_tried_on() -> None:
    row = run(clamp(), Two(), limit=None).row
    first, second = row.suite
    assert 0 < first.broken < first.tried == row.examples.valid
    assert second.tried == first.tried - first.broken
    assert row.constrained.k == first.broken + second.broken


def test_a_suite_breaks_what_any_of_its_attacks_breaks() -> None:
    def broken(attack: Attack) -> set[str]:
        records = run(clamp(), attack, limit=None).records
        return {r.id for r in records if r.measures["constrained"]}

    assert broken(Two()) == broken(hasty()) | broken(orthogonal())


def test_each_flip_shows_the_attack_that_broke_it_and_what_all_cost() -> None:
    both, alone = run(clamp(), Two(), limit=None), run(clamp(), hasty(), limit=None)
    cost = {r.id: r.flops for r in alone.records}
    worst = worst_case(both.records, ("hasty", "orthogonal"))
    assert {r.attack for r in worst} == {"hasty", "orthogonal"}
    for record in worst:
        if record.attack == "hasty":
            assert record.flops >= cost[record.id]
        else:
            assert record.flops > cost[record.id]
    assert both.row.compute.attack.flops == sum(member.flops for member in both.row.suite)


def test_perturbations_stand_under_the_attack_that_found_them() -> None:
    found = run(clamp(), Two(), limit=None)
    for name in ("hasty", "orthogonal"):
        norm_E = found.headline(name).norm_E()
        assert norm_E is not None
        stored = [record.measures["norm"] for record in found.records if record.attack == name]
        assert [norm > 0 for norm in norm_E.tolist()] == [norm > 0 for norm in stored if norm]


def test_norms_of_several_kinds_make_no_curve() -> None:
    row = run(clamp(), Two()).row
    assert row.curve.points == ()
    assert row.norm.n == 0
    assert row.curve.median_norm_recovers is None
    assert row.perturbation.kind == "several"
    assert run(clamp(), unconstrained()).row.suite == ()


@pytest.mark.parametrize("suite", [AutoV1, AutoV2])
def test_auto_does_not_follow_the_defaults_of_its_members(suite: type[Suite]) -> None:
    for name, said in suite.members:
        settings = registry.create("attack", name, {}).config.model_dump()
        free = {"sites"}  # left to the defense, whatever it is
        assert set(said) == settings.keys() - free, name


def test_auto_takes_no_settings() -> None:
    assert AutoV1.Config.model_fields == AutoV2.Config.model_fields == {}


def test_the_identity_follows_the_members_of_a_users_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are built in are in the hash of the harness."""
    for attack in (Two, Hasty):
        monkeypatch.setitem(registry._registered["attack"], attack.name, attack)
    plan = Plan.of(check_names(RunSpec(attack="two", tasks=("ioi",))))
    assert plan.environment["sources"].keys() == {"attack two", "attack hasty"}
