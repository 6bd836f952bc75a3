"""`sweep-layer`: every hook point up to the defended one, each an ordinary run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.store import read_result
from saebench_recovery.runs.layers import sweep_layer
from saebench_recovery.runs.run import execute
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets import loading
from saebench_recovery.targets.target import Target
from tests.journal import quiet
from tests.runs.test_run import contents


def test_each_hook_point_is_a_run_and_the_scalar_is_the_worst_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec(tasks=("unlearning",), limit=24, attack_config={"steps": 2})
    loaded: list[str] = []
    load = loading.load_target

    def counted(name: str, *given: Any, **options: Any) -> Target:
        loaded.append(name)
        return load(name, *given, **options)

    monkeypatch.setattr(loading, "load_target", counted)
    (found,) = sweep_layer(spec, tmp_path, quiet)
    assert loaded == ["organism"]
    sites = [point.site for point in found.points]
    assert sites == ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"]
    for point in found.points:
        (row,) = read_result(tmp_path / point.identity).rows
        assert row.recovery == point.recovery
        assert found.withstands.n == row.recovery.n
        assert found.withstands.k <= row.recovery.n - row.recovery.k
    # Sharing a loaded target changes nothing in what a run leaves.
    alone = spec.model_copy(update={"attack_config": {"steps": 2, "sites": (sites[1],)}})
    made = execute(alone, tmp_path / "alone")
    assert contents(tmp_path / "alone" / made.identity) == contents(tmp_path / made.identity)


@pytest.mark.parametrize(
    "fields", [{"attack": "gcg"}, {"attack_config": {"sites": ["blocks.0.hook_resid_post"]}}]
)
def test_an_attack_without_hook_points_to_choose_is_refused(
    fields: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="sets -A sites"):
        sweep_layer(RunSpec.model_validate(fields), tmp_path, quiet)
    assert not list(tmp_path.iterdir())
