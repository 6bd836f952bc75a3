"""A run that was not touched verifies; whatever is edited in one is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saebench_recovery import registry, run
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.progress import Progress
from saebench_recovery.results.consistency import read_consistent
from saebench_recovery.runs.verify import recompute, refit
from saebench_recovery.runs.verify import verify as module
from saebench_recovery.runs.verify.report import Verification
from saebench_recovery.runs.verify.verify import runs_in, verify
from saebench_recovery.scoring.setting import Setting
from saebench_recovery.scoring.undisturbed import Undisturbed, undisturbed
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.target import Target
from tests.forged import Forger, edited, lines, put

LIMIT = 4  # of `ioi` examples: as many valid flips, in chunks of three
# Settings of tasks with few prompts: each replay fits anew, which asks for all of them.
FEW = {
    "ioi": {"prompts": LIMIT},
    "refusal": {"requests": 5, "selection_requests": 24, "retain_requests": 4},
    "unlearning": {},
}
GENUINE: dict[str, Any] = {"limit": LIMIT, "batch_size": 3, "task_config": FEW["ioi"]}


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("genuine")
    return out / run(tasks=["ioi"], out=out, **GENUINE).identity


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after a shorter search."""
    out = tmp_path_factory.mktemp("other")
    few = {"steps": 3}
    result = run(tasks=["ioi"], attack_config=few, out=out, **GENUINE)
    return out / result.identity


@pytest.fixture
def folder(genuine: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(genuine, tmp_path / genuine.name))


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fitted and replayed: what is stored is held to itself alone."""
    monkeypatch.setattr(module, "recomputed", lambda *_: (0, 0))


@pytest.fixture(scope="module")
def loaded() -> Target:
    return load_target("organism", "cpu")


@pytest.fixture
def replaying(loaded: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model for all."""
    monkeypatch.setattr(recompute, "load_target", lambda *_, **__: loaded)


@pytest.fixture(scope="module")
def fits() -> dict[str, Undisturbed]:
    """By the spec, which a forgery of records, facts and evidence leaves as it is."""
    return {}


@pytest.fixture
def fitted_once(
    replaying: None, fits: dict[str, Undisturbed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run says is held to one fit of its defense for all."""

    def once(setting: Setting, progress: Progress) -> Undisturbed:
        key = setting.spec.model_dump_json()
        if key not in fits:
            fits[key] = undisturbed(setting, progress)
        for plugin, fitted in (
            (setting.task, fits[key].task),
            (setting.defense, fits[key].defense),
        ):
            vars(plugin).update(vars(fitted))
        return fits[key]

    monkeypatch.setattr(refit, "undisturbed", once)


def names(found: Verification) -> str:
    said = [m.line for m in found.mismatches] + [u.line for u in found.unchecked]
    return "\n".join([*said, *found.notes])


# --- what was not touched -----------------------------------------------------------------------


def test_a_genuine_run_holds(genuine: Path) -> None:
    found = verify(genuine)
    assert names(found) == ""
    assert (found.exit_code, found.holds) == (0, True)
    assert found.flips == found.stored_flips == len((genuine / "records.jsonl").open().readlines())


def test_a_sample_is_drawn_by_a_stated_seed(genuine: Path, replaying: None) -> None:
    found = verify(genuine / "result.json", sample=1)
    assert (found.exit_code, found.flips) == (0, 1)
    assert found.seed is not None
    assert verify(genuine, sample=1, seed=found.seed) == found


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("ioi", {"attack": "gcg", "attack_config": {"steps": 2}, "limit": 4}),
        ("ioi", {"attack": "soft-suffix", "attack_config": {"steps": 5}, "limit": 4}),
        ("ioi", {"defense": "residual-monitor", "limit": 4, "budget_unit": "relative"}),
        ("refusal", {"attack": "prefill"}),
        ("ioi", {"attack": "relearn", "attack_config": {"steps": 2}, "limit": 4}),
        ("ioi", {"attack": "quantise", "limit": 4}),
        ("refusal", {"defense": "ablation", "threat_model": "post"}),
        ("unlearning", {"defense": "multilayer", "limit": 4}),
    ],
)
def test_every_kind_of_perturbation_holds(
    task: str, options: dict[str, Any], tmp_path: Path, replaying: None
) -> None:
    result = run(tasks=[task], out=tmp_path, task_config=FEW[task], **options)
    found = verify(tmp_path / result.identity)
    assert names(found) == ""
    assert found.flips == found.stored_flips


def test_runs_are_found_in_a_folder(genuine: Path, tmp_path: Path) -> None:
    assert runs_in(genuine) == [genuine]
    assert runs_in(genuine.parent) == [genuine]
    with pytest.raises(UserError, match="no run at"):
        runs_in(tmp_path)


# --- careless edits -----------------------------------------------------------------------------

ROW = "rows/0/"
IN_RESULT: list[tuple[str, Any, str]] = [
    (ROW + "measures/recovery/rate", 0.9, "measures.recovery"),
    (ROW + "measures/recovery/k", 500, "measures.recovery"),
    (ROW + "measures/nothing/low", 1.0, "measures.nothing"),
    (ROW + "measures/constrained/low", 0.01, "row.measures.constrained.low"),
    (ROW + "measures/fidelity/mean", 0.5, "measures.fidelity.mean"),
    (ROW + "measures/norm/max", 0.1, "measures.norm"),
    (ROW + "drift/readout/relative_l2/max", 0.9, "drift.readout.relative_l2.max"),
    (ROW + "curve/points/0/recovery/k", 6, "curve.points"),
    (ROW + "curve/median_norm_recovers", 9.0, "row.curve.median_norm_recovers"),
    (ROW + "seed", 7, "seed"),
    (ROW + "budget", 0.1, "budget"),
    (ROW + "defense", "ablation", "defense"),
    (ROW + "threat_model", "post", "threat_model"),
    (ROW + "limits/drift", 9.0, "limits.drift"),
    (ROW + "features/blocks.2.hook_resid_post/0", 3, "features"),
    (ROW + "flags", [], "flags"),
    (ROW + "side_effects/kl", 0.0, "side_effects.kl"),
    (ROW + "compute/attack/flops", 1, "compute.attack.flops"),
    (ROW + "examples/valid", 5, "examples.valid"),
    (ROW + "examples/base", 99, "examples"),
    ("identity", "0123456789abcdef", "identity"),
    ("spec/seed", 7, "spec.seed"),
    ("spec/budget", 0.1, "spec.budget"),
    ("provenance/target_hash", "0" * 64, "provenance.target_hash"),
]
IN_STATE: list[tuple[str, Any, str]] = [
    ("facts/0/seed", 7, "seed"),
    ("facts/0/features/blocks.2.hook_resid_post/0", 3, "features"),
    ("facts/0/examples/valid", 5, "records"),
    ("facts/0/member_flops/0", 1, "member_flops"),
    ("facts/0/side_effects/kl", 0.0, "side_effects.kl"),
    ("spec/limits/drift", 9.0, "spec.limits.drift"),
]
EDITS = [("result.json", *edit) for edit in IN_RESULT] + [("run.json", *e) for e in IN_STATE]


@pytest.mark.parametrize(("file", "place", "value", "field"), EDITS)
def test_an_edited_document_is_named(
    folder: Path, on_paper: None, file: str, place: str, value: Any, field: str
) -> None:
    edited(folder / file, lambda document: put(document, place, value))
    found = verify(folder)
    assert found.exit_code == 1
    assert field in names(found)
    # All but what needs intervals, which reading leaves to verification, stops the other verbs.
    if not field.startswith("row."):
        with pytest.raises(UserError, match="does not fit together") as caught:
            read_consistent(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["measures/fidelity/high", "curve/points/0/recovery/low"])
def test_what_another_machine_rounds_otherwise_holds(
    folder: Path, on_paper: None, place: str
) -> None:
    """Roots and powers are not the same to the last bit on all CPUs."""
    result = folder / "result.json"
    edited(result, lambda document: put(document, ROW + place, lambda end: end * (1 + 1e-10)))
    assert names(verify(folder)) == ""
    edited(result, lambda document: put(document, ROW + place, lambda end: end * (1 + 1e-7)))
    assert verify(folder).exit_code == 1


def swapped(found: list[str]) -> list[str]:
    return [found[1], found[0], *found[2:]]


def recovered(found: list[str]) -> list[str]:
    return [found[0].replace('"recovery":true', '"recovery":false'), *found[1:]]


@pytest.mark.parametrize(
    ("file", "change", "field"),
    [
        ("records.jsonl", swapped, "evidence/00000.safetensors ids"),
        ("records.jsonl", lambda found: [found[0], *found], "records.jsonl"),
        ("records.jsonl", lambda found: found[1:], "records.jsonl"),
        ("records.jsonl", recovered, "records.jsonl"),
        ("records.jsonl", lambda found: [], "records.jsonl"),
        ("chunks.jsonl", lambda found: found[:-1], "records"),
        ("chunks.jsonl", lambda found: [*found, found[-1]], "records"),
        ("chunks.jsonl", lambda found: [found[0].replace("00000", "00001"), *found[1:]], "00001"),
        ("chunks.jsonl", swapped, "records.jsonl"),
    ],
)
def test_edited_lines_are_named(
    folder: Path, on_paper: None, file: str, change: Callable[[list[str]], list[str]], field: str
) -> None:
    lines(folder / file, change)
    found = verify(folder)
    assert found.exit_code == 1
    assert field in names(found)
    with pytest.raises(UserError, match="does not fit together"):
        read_consistent(folder)


def test_members_without_their_flops_are_refused(folder: Path) -> None:
    edited(
        folder / "run.json",
        lambda document: put(document, "facts/0/members", ["orthogonal", "two"]),
    )
    with pytest.raises(UserError, match="members of member_flops: stored 1, found 2"):
        read_consistent(folder)


@pytest.mark.parametrize("file", ["records.jsonl", "result.json", "run.json"])
def test_nan_is_refused(folder: Path, file: str) -> None:
    text = (folder / file).read_text()
    number = text.index('"fidelity":') + len('"fidelity":')
    end = min(text.index(mark, number) for mark in (",", "}"))
    (folder / file).write_text(text[:number] + "NaN" + text[end:])
    with pytest.raises(UserError, match=r"broken|does not f|not a result|not a finite number"):
        read_consistent(folder)


@pytest.mark.parametrize("name", ["run.json", "chunks.jsonl", "records.jsonl"])
def test_a_missing_file_is_named(folder: Path, on_paper: None, name: str) -> None:
    (folder / name).unlink()
    found = verify(folder)
    assert found.exit_code in (1, 2)
    assert name in names(found) or "records" in names(found)


# --- careful edits: everything is added up and sealed again -------------------------------------


@pytest.mark.parametrize(
    ("place", "value", "field", "code"),
    [
        ("seed", 7, "identity", 1),
        ("budget", 0.1, "identity", 1),
        ("limits/drift", 9.0, "identity", 1),
        ("attack_config", {"steps": 3}, "identity", 1),
        ("resolved/ioi/defense/latents", 99, "spec.resolved.ioi.defense.latents", 1),
        ("environment/target", "0" * 64, "spec.environment.target", 1),
        ("environment/sources", {"defense clamp": "0"}, "environment.sources", 1),
        ("environment/harness", "0" * 64, "(harness 00000000)", 0),
        ("environment/harness", None, "spec.environment.harness", 1),
        ("environment/packages/torch", "1.0", "torch 1.0", 1),
        ("defense", "no-such-defense", "unknown defense 'no-such-defense'", 2),
    ],
)
def test_an_edited_spec_is_named(
    folder: Path, on_paper: None, place: str, value: Any, field: str, code: int
) -> None:
    forger = Forger(folder)
    forger.spec(place, value)
    if place in forger.state["facts"][0]:
        put(forger.state["facts"][0], place, value)
    forger.seal()
    found = verify(folder)
    assert field in names(found)
    assert found.exit_code == code


def record(e: int, place: str, value: Any) -> Callable[[Forger], None]:
    return lambda forger: put(forger.records[e], place, value)


def fact(place: str, value: Any) -> Callable[[Forger], None]:
    return lambda forger: put(forger.state["facts"][0], place, value)


def tensors(part: str, change: Callable[[torch.Tensor], object]) -> Callable[[Forger], None]:
    def forge(forger: Forger) -> None:
        for values in forger.tensors(part):
            change(values)

    return forge


def negated(value: object) -> bool:
    return not value


def renamed(forger: Forger) -> None:
    forger.records[0]["id"] = "ioi/another"


@pytest.mark.parametrize(
    ("forge", "field"),
    [
        (record(0, "measures/recovery", negated), "recovery"),
        (record(0, "measures/nothing", True), "nothing"),
        (record(0, "measures/random_direction", negated), "random_direction"),
        (record(0, "measures/wrong_target", negated), "wrong_target"),
        (record(0, "measures/base_like", negated), "base_like"),
        (record(0, "measures/first_choice", negated), "first_choice"),
        (record(0, "measures/fidelity", lambda v: v + 0.01), "fidelity"),
        (record(0, "measures/norm", lambda v: v * 0.9), "norm"),
        (record(0, "measures/relative_norm", lambda v: v * 0.9), "relative_norm"),
        (record(0, "objective_clean", lambda v: v * 1.01), "objective_clean"),
        (record(0, "objective_recovered", lambda v: v * 1.01), "objective_recovered"),
        (record(0, "drift/readout/l2", 0.5), "drift.readout.l2"),
        (record(0, "tightest_limit", 0.01), "tightest_limit"),
        (record(0, "smallest_norm", lambda v: v / 2), "smallest_norm"),
        (record(0, "smallest_relative", lambda v: v / 2), "smallest_relative"),
        (record(0, "constraint/rank", 0), "constraint.rank"),
        (record(0, "flags", ["no-gradient"]), "flags"),
        (record(0, "cluster", "another"), "cluster"),
        (renamed, "valid flips"),
        (lambda forger: forger.remove(0), "valid flips"),
        (fact("features/blocks.2.hook_resid_post/0", 3), "facts.features"),
        (fact("held", {}), "facts.held"),
        (fact("side_effects/kl", 0.0), "facts.side_effects.kl"),
        (fact("spreads/blocks.2.hook_resid_post/value", 99.0), "facts.spreads"),
        (tensors("headline/delta", lambda v: v.mul_(1.5)), "evidence headline"),
        (tensors("headline/delta", lambda v: v.copy_(v.flip(0))), "objective_recovered"),
        (tensors("smallest/delta", lambda v: v.mul_(0.5)), "smallest_norm"),
        (tensors("smallest_wrong/delta", lambda v: v.zero_()), "smallest_norm_wrong"),
        (tensors("headline/positions", lambda v: v.sub_(1)), "evidence headline"),
        (tensors("headline/delta", lambda v: v.fill_(torch.nan)), "not finite"),
    ],
)
def test_a_careful_forgery_is_named(
    folder: Path, fitted_once: None, forge: Callable[[Forger], None], field: str
) -> None:
    forger = Forger(folder)
    forge(forger)
    forger.seal()
    read_consistent(folder)  # it fits together
    found = verify(folder)
    assert found.exit_code == 1
    assert field in names(found)


def test_evidence_of_another_run_is_named(folder: Path, other: Path, fitted_once: None) -> None:
    forger = Forger(folder)
    forger.evidence = Forger(other).evidence
    forger.seal()
    assert "objective_recovered" in names(verify(folder))


def test_a_broken_file_of_evidence_is_named(folder: Path, fitted_once: None) -> None:
    file = next((folder / "evidence").iterdir())
    file.write_bytes(file.read_bytes()[:-8])
    assert f"evidence/{file.name} sha256" in names(verify(folder))


def test_missing_evidence_cannot_be_checked(folder: Path, fitted_once: None) -> None:
    (folder / "evidence" / "00000.safetensors").unlink()
    found = verify(folder)
    assert found.exit_code == 2
    assert "evidence/00000.safetensors is missing" in names(found)
    assert 0 < found.flips < found.stored_flips


# --- a plugin of one's own ----------------------------------------------------------------------

PLUGIN = """
from saebench_recovery.defenses.clamp import Clamp
from saebench_recovery.registry import register_defense

@register_defense("verified-clamp")
class Mine(Clamp):
    pass
"""


def test_another_source_of_a_plugin_is_named(
    tmp_path: Path, on_paper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    result = run(
        defense="verified-clamp",
        tasks=["ioi"],
        limit=2,
        defense_config={"latents": 4},
        plugins=[file],
        out=tmp_path,
    )
    assert names(verify(tmp_path / result.identity)) == ""
    file.write_text(PLUGIN + "\n# another\n")
    found = verify(tmp_path / result.identity)
    assert found.exit_code == 1
    assert "spec.environment.sources.defense verified-clamp" in names(found)
    monkeypatch.delitem(registry._registered["defense"], "verified-clamp")
    found = verify(tmp_path / result.identity)
    assert found.exit_code == 2
    assert "unknown defense 'verified-clamp'" in names(found)


def test_the_report_is_plain_data(genuine: Path, on_paper: None) -> None:
    found = verify(genuine)
    assert Verification.model_validate_json(json.dumps(found.model_dump(mode="json"))) == found
