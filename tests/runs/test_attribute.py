"""Attribution of a stored run: recomputed by the reference engine, and one line for bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch

from saebench_recovery import run
from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import ResidualDelta
from saebench_recovery.model.defended import Trace
from saebench_recovery.model.forward import forward
from saebench_recovery.model.plain import Conditions
from saebench_recovery.perturbations.parts import PARTS, scaled
from saebench_recovery.runs.attribute import mediation
from saebench_recovery.runs.attribute.attribute import attribute
from saebench_recovery.runs.attribute.mediation import Held, later_sites, works_holding
from saebench_recovery.runs.attribute.reopened import loaded, recovered, stored_run
from saebench_recovery.runs.attribute.replays import ReplayedParts
from saebench_recovery.schema import Attribution
from saebench_recovery.targets.plain import load_plain


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("genuine")
    return out / run(tasks=["ioi"], limit=6, batch_size=3, budget=1.0, out=out).identity


@pytest.fixture
def folder(genuine: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(genuine, tmp_path / genuine.name))


def test_every_recovered_flip_is_attributed(genuine: Path) -> None:
    lines = (genuine / "records.jsonl").read_text().splitlines()
    back = [r for r in map(json.loads, lines) if r["measures"]["recovery"]]
    assert back
    (task,) = attribute(genuine).tasks
    assert task.flips == len(back)
    recovering, random, wrong = task.deltas
    assert recovering.works.k == recovering.works.n == len(back)
    assert wrong.works.k == sum(r["measures"]["wrong_target"] for r in back)
    assert random.works.k == sum(r["measures"]["random_direction"] for r in back)
    clamped = recovering.parts[0]
    assert clamped.alone.n == 0  # `orthogonal` keeps them in place
    assert sum(p.share.mean or 0 for p in recovering.parts if p.share) == pytest.approx(1)
    (place,) = task.places
    assert (place.behind_readout, place.flips) == (0, len(back))
    assert place.alone == recovering.works
    assert place.without.k == 0
    found = attribute(genuine, flips=1)
    assert found.tasks[0].flips == 1
    assert Attribution.model_validate_json(found.model_dump_json()) == found


def test_every_replay_is_that_of_the_reference_engine(genuine: Path) -> None:
    stored, plan = stored_run(genuine)
    target = loaded(plan)
    chunk = ReplayedParts(next(recovered(target, plan, stored, "ioi", 2)), top=4)
    plain = load_plain(target.preset, sorted(chunk.setting.defense.latents))
    of_source = dict(chunk.sources())
    task = chunk.setting.task
    for asked, source in ((chunk.examples, "recovering"), (chunk.examples, "random")):
        replays = of_source[source]  # type: ignore[index]
        for part in PARTS:
            for how, delta in (
                ("alone", replays.split.parts[part]),
                ("without", replays.split.without(part)),
            ):
                for e, verdict in enumerate(replays.verdicts[f"{how} {part}"]):
                    if verdict is None:
                        continue
                    one: ResidualDelta = delta.rows(torch.tensor([e]))
                    with torch.no_grad():
                        output = plain.output(asked[e], Conditions(chunk.setting.defense, one))
                    assert bool(task.behaviour(output)) == verdict


def test_places_are_replayed_alone_and_left_out(tmp_path: Path) -> None:
    where = {"sites": ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"], "positions": "all"}
    made = run(tasks=["ioi"], limit=6, budget=1.0, attack_config=where, out=tmp_path)
    (task,) = attribute(tmp_path / made.identity, flips=2).tasks
    stored, plan = stored_run(tmp_path / made.identity)
    target = loaded(plan)
    chunk = ReplayedParts(next(recovered(target, plan, stored, "ioi", 2)), top=4)
    plain, delta = (
        load_plain(target.preset, sorted(chunk.setting.defense.latents)),
        chunk.of("headline"),
    )
    assert {place.site for place in task.places} == set(where["sites"])
    assert {place.flips for place in task.places} <= {1, 2}
    for place in task.places:
        alone, without = 0, 0
        for e, example in enumerate(chunk.examples):
            at = len(example.prompt) - 1 + place.behind_readout
            if at < 1:  # the BOS is not perturbed
                continue
            here_P = (delta.positions_EP[e] == at)[:, None]
            for keeps_place in (True, False):
                values = {
                    site: v[e] * ((here_P & (str(site) == place.site)) == keeps_place)
                    for site, v in delta.values.items()
                }
                one = ResidualDelta(
                    {s: v[None] for s, v in values.items()}, delta.positions_EP[[e]]
                )
                with torch.no_grad():
                    output = plain.output(example, Conditions(chunk.setting.defense, one))
                works = bool(chunk.setting.task.behaviour(output))
                alone, without = (
                    alone + (works and keeps_place),
                    without + (works and not keeps_place),
                )
        assert (place.alone.k, place.without.k) == (alone, without)


def test_a_run_without_evidence_is_one_line(folder: Path) -> None:
    for file in (folder / "evidence").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"evidence cannot be read: .* is missing"):
        attribute(folder)
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="without evidence there is no delta"):
        attribute(folder)


def test_another_schema_is_one_line(folder: Path) -> None:
    content = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(UserError, match="99"):
        attribute(folder)


def test_a_run_without_recoveries_is_one_line(tmp_path: Path) -> None:
    result = run(tasks=["ioi"], attack="random-direction", limit=4, budget=0.01, out=tmp_path)
    with pytest.raises(UserError, match="ioi: no recovery by a residual delta"):
        attribute(tmp_path / result.identity)


def test_what_is_held_at_later_sites_stays(genuine: Path) -> None:
    """With nothing added nothing changes; with a large delta either of the two does something."""
    stored, plan = stored_run(genuine)
    target = loaded(plan)
    chunk = ReplayedParts(next(recovered(target, plan, stored, "ioi", 2)), top=4)
    setting, examples, delta = chunk.setting, chunk.examples, chunk.of("headline")
    (site,) = later_sites(setting, delta)
    zero = scaled(delta, torch.zeros(len(examples)))
    batch, seen = target.batch(examples), Trace()
    forward(target, batch, setting.active.edits(batch, trace=seen, watch=(site,)))
    dictionary, defended = target.dictionary(site), seen.after[site]
    for held in get_args(Held):
        assert not works_holding(setting, examples, zero, held).any()
        edit = mediation._holding(dictionary, None, defended, held)
        torch.testing.assert_close(edit(defended), defended, rtol=1e-4, atol=1e-4)
    moved = defended + torch.randn(defended.shape, generator=torch.Generator().manual_seed(0))
    expressed, before = dictionary.reconstruct(moved), dictionary.reconstruct(defended)
    latents_move, residual_moves = (
        mediation._holding(dictionary, None, defended, held)(moved) for held in get_args(Held)
    )
    torch.testing.assert_close(latents_move - expressed, defended - before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(residual_moves - before, moved - expressed, rtol=1e-4, atol=1e-4)
