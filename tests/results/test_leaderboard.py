"""Only what is comparable is ranked together, by the worst case, and always in the same order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.leaderboard import Leaderboard, build
from saebench_recovery.results.publish import publish
from saebench_recovery.results.report.markdown import page
from saebench_recovery.schema import Constraint, Detection
from saebench_recovery.spec import RunSpec
from tests.fakes import SITE, made, rate, record, row, run_result, write_run

Stored = Callable[..., Path]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Write a run of one task and return its folder."""
    numbers = itertools.count()

    def store(
        defense: str = "clamp",
        attack: str = "orthogonal",
        constrained: int = 80,
        *,
        task: str = "alpha",
        status: str = "complete",
        valid: int = 100,
        settings: dict[str, Any] | None = None,
        attack_settings: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        spec = RunSpec(defense=defense, attack=attack, tasks=(task,), seed=changes.get("seed", 0))
        configs = {"defense": settings or {}, "attack": attack_settings or {}, "task": {}}
        result = run_result(
            row(task, constrained, valid, defense=defense, attack=attack, **changes),
            status=status,
            identity=f"run{next(numbers)}",
            spec={
                **spec.model_dump(mode="json"),
                "resolved": {task: {"site": SITE, **configs}},
                "plugin_files": ["mine.py"],
            },
        )
        flips = [record(task, f"{task}/{i}", attack=attack) for i in range(valid)]
        return write_run(tmp_path / "runs" / result.identity, result, flips)

    return store


def test_defenses_rank_by_their_worst_case(stored: Stored) -> None:
    (board,) = build(
        [
            stored("clamp", "orthogonal", 90),
            stored("clamp", "unconstrained", 10),
            stored("ablation", "orthogonal", 40),
            stored("ablation", "unconstrained", 60),
        ]
    )
    (group,) = board.groups
    assert [(d.rank, d.defense, d.worst_attack) for d in group.defenses] == [
        (1, "ablation", "unconstrained"),
        (2, "clamp", "orthogonal"),
    ]
    best = group.defenses[0]
    assert best.worst_case == rate(60)
    assert [a.attack for a in best.attacks] == ["unconstrained", "orthogonal"]
    assert best.attacks[0].worst_drift == 0.5
    assert best.missing_attacks == ()


def test_equal_defenses_share_a_rank(stored: Stored) -> None:
    (board,) = build([stored("clamp"), stored("ablation"), stored("steering", constrained=90)])
    assert [d.rank for d in board.groups[0].defenses] == [1, 1, 3]


def test_order_of_runs_and_repetition_do_not_matter(stored: Stored, tmp_path: Path) -> None:
    runs = [
        stored(defense, attack, constrained, seed=seed)
        for seed in (0, 1)
        for defense, attack, constrained in (
            ("clamp", "orthogonal", 50),
            ("ablation", "orthogonal", 50),
            ("clamp", "unconstrained", 50),
        )
    ]
    one = publish(build(runs), tmp_path / "one")
    other = publish(build([*reversed(runs), *runs]), tmp_path / "other")
    assert [p.name for p in one] == ["organism-alpha.json", "organism.md"]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]


@pytest.mark.parametrize("change", [{"threat_model": "post"}, {"budget": 0.5}, {"seed": 1}])
def test_what_is_not_comparable_is_not_ranked_together(
    stored: Stored, change: dict[str, Any]
) -> None:
    (board,) = build([stored("clamp"), stored("ablation", **change)])
    assert [[d.rank for d in group.defenses] for group in board.groups] == [[1], [1]]


def test_attacks_on_other_valid_flips_are_not_mixed(stored: Stored) -> None:
    (board,) = build([stored(attack="orthogonal"), stored(attack="unconstrained", valid=90)])
    (group,) = board.groups
    assert len(group.defenses) == 2
    assert {d.missing_attacks for d in group.defenses} == {("orthogonal",), ("unconstrained",)}


def test_settings_tell_defenses_and_attacks_apart(stored: Stored) -> None:
    (board,) = build(
        [
            stored(attack_settings={"steps": 5}),
            stored(attack_settings={"steps": 50}),
            stored(settings={"latents": 3}, attack_settings={"steps": 50}),
        ]
    )
    (group,) = board.groups
    missing = {
        canonical["latents"]: d.missing_attacks for d in group.defenses if (canonical := d.config)
    }
    assert missing == {3: ("orthogonal steps=5",)}
    assert sorted(len(d.attacks) for d in group.defenses) == [1, 2]


def test_defense_without_valid_flips_is_not_ranked(stored: Stored) -> None:
    (board,) = build([stored("clamp", valid=0, constrained=0), stored("ablation", constrained=99)])
    assert [(d.rank, d.defense) for d in board.groups[0].defenses] == [
        (1, "ablation"),
        (None, "clamp"),
    ]


def test_flags_are_shown(stored: Stored) -> None:
    (board,) = build([stored("clamp", flags=("no-gradient",)), stored("ablation")])
    flagged = {d.defense: (d.flagged, d.attacks[0].flags) for d in board.groups[0].defenses}
    assert flagged == {"clamp": (True, ("no-gradient",)), "ablation": (False, ())}


def test_an_unconstrained_attack_that_does_worse_is_shown(stored: Stored) -> None:
    def shown(free: int) -> bool:
        held = made(Constraint, kind="exact")
        runs = [
            stored("clamp", "orthogonal", 90, recovery=rate(90), constraint=held),
            stored("clamp", "unconstrained", 10, recovery=rate(free)),
        ]
        return build(runs)[0].groups[0].defenses[0].freedom_hurts

    assert shown(80)
    assert not shown(86)  # inside the interval of the other


def test_one_board_per_task_with_commands(stored: Stored, tmp_path: Path) -> None:
    paths = publish(build([stored(task="beta"), stored(task="alpha", seed=3)]), tmp_path / "out")
    assert [p.name for p in paths] == ["organism-alpha.json", "organism-beta.json", "organism.md"]
    board = Leaderboard.model_validate_json(paths[0].read_text())
    (entry,) = board.groups[0].entries
    assert entry.command == (
        "saebench run --target organism --defense clamp --attack orthogonal --task alpha "
        "--threat-model reclamp --budget 0.5 --seed 3 --plugin mine.py"
    )
    assert entry.row == row("alpha", seed=3)


def test_file_names_hold_for_any_target(stored: Stored, tmp_path: Path) -> None:
    paths = publish(build([stored(target="some/model+sae@blocks.1.hook_resid_post")]), tmp_path)
    assert {path.parent for path in paths} == {tmp_path}
    stem = "some_model_sae_blocks.1.hook_resid_post"
    for path, wanted in zip(
        paths, (rf"{stem}-alpha-\w{{12}}.json", rf"{stem}-\w{{12}}.md"), strict=True
    ):
        assert re.fullmatch(wanted, path.name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a/b", "alpha"), ("a_b", "alpha")),
        (("a", "b-alpha"), ("a-b", "alpha")),
        (("x" * 300, "alpha"), ("x" * 301, "alpha")),
        (("Model", "alpha"), ("model", "alpha")),
    ],
)
def test_no_two_boards_share_a_file(
    one: tuple[str, str], other: tuple[str, str], stored: Stored, tmp_path: Path
) -> None:
    runs = [stored(target=target, task=task) for target, task in (one, other)]
    paths = publish(build(runs), tmp_path / "boards")
    assert len({path.name.lower() for path in paths}) == len(paths) == 4
    assert {path.parent for path in paths} == {tmp_path / "boards"}


def cells(text: str, defense: str) -> list[str]:
    """The cells of a defense's row on a page."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {defense} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_page_has_defenses_down_and_attacks_across(stored: Stored) -> None:
    text = page(
        build(
            [
                stored("clamp", "orthogonal", 90, flags=("no-gradient",)),
                stored("clamp", "unconstrained", 10, recovery=rate(70)),
                stored("ablation", "orthogonal", 40),
            ]
        )
    )
    assert "| defense | flips / examples | retained | KL | orthogonal | unconstrained |" in text
    assert cells(text, "clamp")[-2:] == ["0.90*", "0.10 (0.70)"]
    assert cells(text, "ablation")[-2:] == ["0.40", "-"]
    assert text.index("| ablation |") < text.index("| clamp |")  # the more robust one first


def test_the_page_shows_the_mean_over_a_tasks_targets(stored: Stored) -> None:
    runs = [stored(task=f"alpha/{name}", constrained=k) for name, k in (("a", 20), ("b", 60))]
    text = page(build(runs))
    assert "### alpha\n" in text
    assert cells(text, "clamp")[-1] == "0.40"


def test_the_page_shows_what_a_detector_saw(stored: Stored) -> None:
    seen = made(Detection, attacked=rate(97))
    assert cells(page(build([stored(detection=seen)])), "clamp")[-1] == "0.80, seen 0.97"


def test_the_page_tells_namesakes_apart_by_what_differs(stored: Stored) -> None:
    runs = [stored(attack_settings={"steps": n, "lr": 1}) for n in (5, 50)]
    assert "| orthogonal steps=5 | orthogonal steps=50 |" in page(build(runs))


def test_partial_run_is_refused(stored: Stored) -> None:
    with pytest.raises(UserError, match="is a partial run; finish it first: saebench run"):
        build([stored("clamp"), stored("ablation", status="partial")])


def test_folder_without_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        build([tmp_path])
