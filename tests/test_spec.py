"""The identity covers everything that changes numbers, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.runs.fingerprint import hash_files, target_fingerprint
from saebench_recovery.runs.run import run
from saebench_recovery.spec import IDENTITY, NOT_IDENTITY, RESOLVED, Limits, RunSpec, identity
from tests.fakes import PRESET, Engine

CHANGED: dict[str, Any] = {
    "target": "another",
    "tasks": ("ioi",),
    "defense": "ablation",
    "attack": "unconstrained",
    "threat_model": "post",
    "budget": 0.75,
    "budget_unit": "absolute",
    "protocol": "published",
    "limits": Limits(drift=0.1),
    "seed": 1,
    "limit": 8,
    "force_sae": True,
    "dtype": "bfloat16",
    "flops": 1e9,
    "device": "cuda",
    "batch_size": 4,
    "defense_config": {"latents": 3},
    "attack_config": {"steps": 3},
    "task_config": {"prompts": 3},
}


def test_every_field_is_classified() -> None:
    classes = [IDENTITY, NOT_IDENTITY, RESOLVED]
    assert frozenset().union(*classes) == set(RunSpec.model_fields) == set(CHANGED)
    assert sum(map(len, classes)) == len(RunSpec.model_fields)


@pytest.mark.parametrize("field", sorted(CHANGED))
def test_identity_follows_exactly_its_fields(field: str) -> None:
    before = identity(RunSpec(), {}, {})
    after = identity(RunSpec(**{field: CHANGED[field]}), {}, {})
    assert (before != after) == (field in IDENTITY)


def test_identity_follows_settings_and_environment() -> None:
    spec = RunSpec()
    ids = {
        identity(spec, {}, {}),
        identity(spec, {"alpha": {"defense": {"latents": 3}}}, {}),
        identity(spec, {}, {"target": "abc"}),
    }
    assert len(ids) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"defense_config": {"latents": 9}},
        {"attack_config": {"steps": 3}},
        {"tasks": ["alpha"]},
        {"seed": 1},
        {"limits": Limits(decode=0.5)},
    ],
)
def test_runs_with_other_numbers_do_not_share_a_folder(
    engine: Engine, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert run(out=tmp_path).identity != run(out=tmp_path, **change).identity


@pytest.mark.parametrize(
    "same",
    [
        {"defense_config": {"latents": 7}, "tasks": ["alpha"]},  # the target's own value, said
        {"tasks": ["alpha", "alpha"]},
        {"device": "cpu", "batch_size": 3, "tasks": ["alpha"]},
    ],
)
def test_saying_a_default_is_the_same_run(
    engine: Engine, tmp_path: Path, same: dict[str, Any]
) -> None:
    assert run(out=tmp_path, tasks=["alpha"]).identity == run(out=tmp_path, **same).identity


def test_order_of_tasks_does_not_matter(engine: Engine, tmp_path: Path) -> None:
    one = run(out=tmp_path, tasks=["gamma", "beta", "alpha"])
    assert one == run(out=tmp_path)


def test_edited_plugin_or_target_is_another_run(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plugin(factor: int) -> Path:
        file = tmp_path / "plugin.py"
        file.write_text(
            "from saebench_recovery import register_defense\n"
            "from saebench_recovery.interfaces import Defense\n"
            "@register_defense('scaled')\n"
            "class Scaled(Defense):\n"
            "    def intervene(self, site, resid_BTD):\n"
            f"        return resid_BTD * {factor}\n"
        )
        return file

    out = tmp_path / "runs"
    ids = [run(out=out, defense="scaled", plugins=[plugin(f)]).identity for f in (1, 2, 1)]
    assert ids[0] == ids[2] != ids[1]
    clamp = run(out=out).identity
    assert run(out=out, plugins=[plugin(3)]).identity == clamp  # loaded, but not used
    monkeypatch.setattr("saebench_recovery.runs.plan.package_versions", lambda: {"torch": "0"})
    assert run(out=out).identity != clamp


def test_hash_follows_names_and_contents_not_place(tmp_path: Path) -> None:
    def hashed(folder: str, name: str, content: str) -> str:
        root = tmp_path / folder
        root.mkdir()
        (root / name).write_text(content)
        return hash_files(root.iterdir(), root)

    assert hashed("a", "x", "1") == hashed("b", "x", "1")
    assert len({hashed("c", "x", "1"), hashed("d", "y", "1"), hashed("e", "x", "2")}) == 3


def test_target_fingerprint_follows_weights_and_sites(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("1")
    local = PRESET.model_copy(update={"model": str(tmp_path)})
    before = target_fingerprint(local)
    assert before != target_fingerprint(PRESET)
    (tmp_path / "README.md").write_text("about the weights")
    assert target_fingerprint(local) == before
    weights.write_text("2")
    assert target_fingerprint(local) != before
    moved = PRESET.model_copy(update={"saes": {"blocks.0.hook_resid_post": "nowhere/sae"}})
    assert target_fingerprint(moved) != target_fingerprint(PRESET)
