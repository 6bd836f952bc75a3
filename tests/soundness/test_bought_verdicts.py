"""Rules 7 and 16: what an attack does beside searching buys nothing, or is named in the row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import Example, ResidualDelta, Task
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.scoring import measures
from saebench_recovery.scoring import replay as replaying
from saebench_recovery.scoring.aggregate import aggregate
from tests.fakes import facts, record
from tests.soundness.setting import clamp, orthogonal, run
from tests.tiny import TinyTask, shared_target


class Seeing(Orthogonal):
    """Notes the answers that it is asked for."""

    asked: Sequence[Example]

    def search(self, problem: Problem) -> ResidualDelta:
        self.asked = problem.examples
        return super().search(problem)


def test_right_and_wrong_rows_are_shuffled_and_unmarked() -> None:
    attack = Seeing()
    run(clamp(), attack)
    right = {
        e.id: e.candidates[0] for e in TinyTask().examples(shared_target("gpt2"), "evaluation")
    }
    assert all(example.wrong is None for example in attack.asked)
    first, second = (
        [example.candidates[0] == right[example.id] for example in attack.asked[place::2]]
        for place in (0, 1)
    )
    assert [one != other for one, other in zip(first, second, strict=True)] == [True] * len(first)
    assert len(set(first)) == 2, "the first row of every flip asks for the same side"


class Sabotage(Orthogonal):
    """Returns nothing in every row whose answer is not the first one's: half of its own control."""

    def search(self, problem: Problem) -> ResidualDelta:
        found = super().search(problem)
        first = problem.examples[0].candidates[0]
        other = torch.tensor([e.candidates[0] != first for e in problem.examples])
        return replace(
            found,
            values={s: v.masked_fill(other[:, None, None], 0) for s, v in found.values.items()},
        )


class Lifting(Orthogonal):
    """Leaves the constraint set, and makes every drift of its problem look small."""

    constrained = False

    def search(self, problem: Problem) -> ResidualDelta:
        typical = problem._engine.drift_rule.typical
        assert isinstance(typical, dict)
        typical.update(dict.fromkeys(typical, 1e9))
        zeros = problem.zeros()
        _, grads = problem.gradient(zeros)
        return replace(zeros, values={s: 1e6 * grad for s, grad in grads.items()})


def test_the_scale_of_drift_is_out_of_reach() -> None:
    row = run(clamp(), Lifting()).row
    assert row.recovery.k > 0
    assert row.constrained.k == 0


class Otherwise(ResidualDelta):
    """A delta that changes the examples it is applied to."""


class Disguised(Orthogonal):
    def search(self, problem: Problem) -> ResidualDelta:
        zeros = problem.zeros()
        return Otherwise(zeros.values, zeros.positions_EP)


def test_a_class_of_perturbations_of_the_attacks_own_is_refused() -> None:
    with pytest.raises(UserError, match="Otherwise of its own"):
        run(clamp(), Disguised())


def test_the_harness_injects_by_itself() -> None:
    honest, sabotaged = run(clamp(), Orthogonal()).row, run(clamp(), Sabotage()).row
    own = honest.controls.wrong_target_reference
    assert own == honest.controls.wrong_target
    assert sabotaged.controls.wrong_target_reference.k >= own.k - 1


def test_a_control_that_the_attack_weakens_is_named_and_the_reference_counts() -> None:
    def found(flips: int = 40, **shown: int) -> set[str]:
        """The flags of so many flips, of which so many show each thing."""
        verdicts: list[dict[str, Any]] = [
            {n: i < k for n, k in shown.items()} for i in range(flips)
        ]
        records = [record(id=str(i), **each) for i, each in enumerate(verdicts)]
        return {flag.name for flag in aggregate(facts(), records).flags}

    raised = {"control-weakened", "injection-as-easy"}
    assert raised <= found(recovery=36, wrong_target=4, wrong_target_reference=36)
    assert not raised & found(recovery=36, wrong_target=4, wrong_target_reference=4)
    few = found(2, recovery=2, wrong_target=1, wrong_target_reference=2)
    assert "control-weakened" not in few  # one of two may miss by chance


class Recounting(Orthogonal):
    """Has a measure count every flip, whatever was seen."""

    def search(self, problem: Problem) -> ResidualDelta:
        recovery = measures.MEASURES[0]
        object.__setattr__(recovery, "of", lambda seen: torch.ones_like(seen.recovered_E))
        return super().search(problem)


class Miscalculating(Orthogonal):
    """Replaces a function of torch."""

    def search(self, problem: Problem) -> ResidualDelta:
        tensors: Any = torch.Tensor
        tensors.argmax = lambda self, *args, **kwargs: torch.zeros(len(self), dtype=torch.long)
        return super().search(problem)


def test_a_patched_table_is_named() -> None:
    recovery, of = measures.MEASURES[0], measures.MEASURES[0].of
    try:
        row = run(clamp(), Recounting()).row
    finally:
        object.__setattr__(recovery, "of", of)
    assert "judge-replaced" in row.flag_names


def test_a_patched_function_of_torch_is_named() -> None:
    tensors: Any = torch.Tensor
    try:
        row = run(clamp(), Miscalculating()).row
    finally:
        del tensors.argmax  # the inherited one is back
    assert "judge-replaced" in row.flag_names


class Early(Orthogonal):
    """Puts a detector of its own on the task while it is asked where it acts, before any search."""

    def positions(self, task: Task, example: Example) -> tuple[int, ...]:
        judge: Any = task
        judge.behaviour = lambda output: torch.ones(len(output.examples), dtype=torch.bool)
        return super().positions(task, example)


def test_what_an_attack_replaces_before_it_searches_is_named() -> None:
    assert "judge-replaced" in run(clamp(), Early()).row.flag_names


def hides_a_builtin(monkeypatch: pytest.MonkeyPatch, task: TinyTask) -> None:
    monkeypatch.setattr(replaying, "zip", zip, raising=False)


def goes_before_an_inherited_method(monkeypatch: pytest.MonkeyPatch, task: TinyTask) -> None:
    monkeypatch.setattr(Inheriting, "stopped", TinyTask.stopped)


class Inheriting(TinyTask):
    """Takes its detector from another class."""


@pytest.mark.parametrize("write", [hides_a_builtin, goes_before_an_inherited_method])
def test_a_new_name_before_another_is_named(
    write: Callable[[pytest.MonkeyPatch, TinyTask], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Inheriting()

    class Writing(Orthogonal):
        def search(self, problem: Problem) -> ResidualDelta:
            write(monkeypatch, task)
            return super().search(problem)

    assert "judge-replaced" in run(clamp(), Writing(), task=task).row.flag_names


def test_what_a_plugin_file_plants_beforehand_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge: Any = replaying
    monkeypatch.setattr(judge, "tightest_limit", judge.tightest_limit)  # put back afterwards
    file = tmp_path / "planting.py"
    file.write_text(
        "from saebench_recovery.scoring import replay\n"
        "old = replay.tightest_limit\n"
        "replay.tightest_limit = lambda drift: old(drift)\n"
    )
    registry.load_plugin_file(file)
    assert "judge-replaced" in run(clamp(), orthogonal()).row.flag_names


class Unbooked(Orthogonal):
    """Asks for what only the engine may be asked."""

    def search(self, problem: Any) -> ResidualDelta:
        found: ResidualDelta = problem.differentiable(problem.zeros())
        return found


def test_there_is_no_door_around_the_engine() -> None:
    with pytest.raises(UserError, match=r"search .*differentiable"):
        run(clamp(), Unbooked())
