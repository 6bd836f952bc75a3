"""A stored run of a suite of which a member failed verifies, and says which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from saebench_recovery.attacks.orthogonal import Orthogonal

from saebench_recovery import registry, run
from saebench_recovery.interfaces import Attack, Perturbation
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.runs.verify.verify import verify


class Fails(Attack):
    name = "fails"

    def search(self, problem: Problem) -> Any:
        raise RuntimeError("no idea")


class Suite(Attack):
    name = "suite"

    def suite(self) -> Sequence[Attack]:
        return [Fails(), Orthogonal(Orthogonal.Config(steps=2))]

    def search(self, problem: Problem) -> Perturbation:
        raise AssertionError("a suite is searched through its members")


def test_a_run_with_a_member_that_failed_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attack in (Suite, Fails):
        monkeypatch.setitem(registry._registered["attack"], attack.name, attack)
    result = run(attack="suite", tasks=["ioi"], limit=2, out=tmp_path)
    failed, whole = result.rows[0].suite
    assert failed.failed.endswith("search raised RuntimeError: no idea (raises); " + REMEDY)
    assert whole.tried == result.rows[0].examples.valid > 0
    found = verify(tmp_path / result.identity)
    assert (found.mismatches, found.unchecked) == ((), ())


REMEDY = "mend the method; --debug shows the traceback"
