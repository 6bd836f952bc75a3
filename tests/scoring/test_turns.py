"""Members of a suite take turns; one that fails is named and ends nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from saebench_recovery.attacks.prefill import Prefill
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import PluginError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Perturbation
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.results.chunks import RunJournal
from saebench_recovery.results.consistency import _member_mismatches
from saebench_recovery.scoring import turns
from saebench_recovery.scoring.aggregate import aggregate
from saebench_recovery.spec import RunSpec
from tests.journal import MemoryJournal, evaluate
from tests.soundness.setting import BUDGET, Zero, clamp, orthogonal, run
from tests.tiny import TinyTask, shared_target


class Fails(Zero):
    """Does nothing to the first flips, then raises."""

    name = "fails"
    error: BaseException = RuntimeError("no\nidea")

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.left, self.problems = after, list[Problem]()

    def search(self, problem: Problem) -> Any:
        self.problems.append(problem)
        if problem.allowance is not None:  # the trial of one flip beforehand
            return problem.zeros()
        self.left -= 1
        if self.left < 0:
            raise self.error
        return problem.zeros()


class Suite(Attack):
    """The given attacks."""

    name = "suite"

    def __init__(self, *members: Attack) -> None:
        super().__init__()
        self.attacks = members

    def suite(self) -> Sequence[Attack]:
        return self.attacks

    def search(self, problem: Problem) -> Perturbation:
        raise AssertionError("a suite is searched through its members")


def test_a_member_that_fails_is_named_and_the_others_go_on() -> None:
    found, alone = run(clamp(), Suite(Fails(), orthogonal())), run(clamp(), orthogonal())
    failed, whole = found.row.suite
    assert (failed.attack, failed.tried) == ("fails", 0)
    assert failed.failed == "attack 'fails': search raised RuntimeError: no idea"
    assert (whole.failed, whole.broken) == ("", alone.row.constrained.k)
    assert [flag.level for flag in found.row.flags if flag.name == "member-failed"] == ["caution"]
    assert "member-failed" not in alone.row.flag_names


def test_what_it_did_before_counts() -> None:
    found = run(clamp(), Suite(Fails(after=1), orthogonal()), batch_size=3)
    failed, whole = found.row.suite
    assert (failed.tried, whole.tried) == (3, found.row.examples.valid)
    assert list(_member_mismatches(found.facts, found.records)) == []


def test_an_attack_alone_that_fails_ends_the_run() -> None:
    with pytest.raises(UserError, match="no idea"):
        run(clamp(), Fails())


def test_a_suite_of_which_nothing_is_left_ends_the_run() -> None:
    with pytest.raises(UserError, match=r"all members .* failed on 4 flips.*no idea"):
        run(clamp(), Suite(Fails(), Raises()))


class Raises(Fails):
    name = "raises"


class Stops(Fails):
    name = "stops"
    error = KeyboardInterrupt()


def test_stopping_ends_the_run() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(clamp(), Suite(Stops(), orthogonal()))


def test_what_a_defense_does_wrong_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it could keep every attack off by raising."""

    def raising(*_: Any) -> None:
        raise PluginError("defense 'x'", "intervene", "raised ValueError: not under attack")

    monkeypatch.setattr(turns, "score_chunk", raising)
    with pytest.raises(PluginError, match="not under attack"):
        run(clamp(), Suite(orthogonal(), Zero()))


class Refusing(Clamp):
    """Says once, in the words of bad input, that it will not be attacked."""

    attacked = False

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        if Refusing.attacked:
            Refusing.attacked = False
            refused = UserError("not under attack")
            refused.kind = "attack"
            raise refused
        return super().intervene(site, resid_BTD)


class Provokes(Zero):
    def search(self, problem: Problem) -> Any:
        Refusing.attacked = problem.allowance is None  # not in the trial of one flip beforehand
        problem.objective(problem.zeros())
        return problem.zeros()


def test_bad_input_that_a_defense_speaks_of_is_the_defense_s() -> None:
    refusing = Refusing(clamp().config)
    with pytest.raises(UserError, match=r"^not under attack$"):
        run(refusing, Suite(Provokes(), orthogonal()))


def evaluated(journal: Any, attack: Attack) -> Any:
    spec = RunSpec(budget=BUDGET, limit=12, batch_size=3)
    target, task = shared_target("gpt2"), TinyTask()
    return evaluate(target, task, clamp(), attack, spec, journal)


def test_a_failure_is_kept_and_not_tried_again(tmp_path: Path) -> None:
    """Else what the later members were tried on would be another set when a run goes on."""
    first = evaluated(RunJournal(tmp_path), Suite(Fails(after=1), orthogonal()))
    again = Fails(after=9)
    journal = RunJournal(tmp_path)
    second = evaluated(journal, Suite(again, orthogonal()))
    assert again.problems == []
    assert first.failures == second.failures != {}
    assert aggregate(second, journal.records(second.task)).suite[0].tried == 3


def test_its_traceback_is_logged_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "saebench_recovery"):
        evaluated(MemoryJournal(), Suite(Fails(), orthogonal()))
    assert "raise self.error" in caplog.text


def test_members_that_do_not_apply_to_a_task_are_left_out() -> None:
    """Nothing is written in a task that does not generate."""
    assert [one.attack for one in run(clamp(), Suite(Prefill(), orthogonal())).row.suite] == [
        "orthogonal"
    ]
    with pytest.raises(UserError, match=r"none of its members applies; .* written answer"):
        run(clamp(), Suite(Prefill()))


def test_two_members_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two members of a suite have one name"):
        run(clamp(), Suite(orthogonal(), orthogonal()))


def test_members_search_at_the_headline_budget_alone() -> None:
    seen = Fails(after=9)
    run(clamp(), Suite(seen, orthogonal()))
    assert {problem.variants for problem in seen.problems} == {2}
    assert all((problem.budget_N == BUDGET).all() for problem in seen.problems)
