"""Only what is comparable is ranked together, by the behaviour under attack, ties shared."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.results.leaderboard import Leaderboard, build
from saebench_recovery.results.pages import write_boards
from saebench_recovery.results.report.markdown import page
from saebench_recovery.schema import Constraint, Detection
from saebench_recovery.schema.facts import PerturbationKind
from tests.fakes import flag, made, rate, row
from tests.results.made_runs import Stored, group_of, page_of, places

pytestmark = pytest.mark.usefixtures("made_up_runs")


class TestRanks:
    def test_defenses_rank_by_each_examples_worst_attack(self, stored: Stored) -> None:
        group = group_of(
            [
                stored("clamp", "orthogonal", 90),
                stored("clamp", "unconstrained", 10),
                stored("ablation", "orthogonal", 40),
                stored("ablation", "unconstrained", 60),
            ]
        )
        assert places(group) == [(1, "ablation"), (2, "clamp")]
        best, worst = group.defenses
        assert (best.worst_attack, worst.worst_attack) == ("unconstrained", "orthogonal")
        assert best.under_attack.k == 60
        assert [a.attack for a in best.attacks] == ["unconstrained", "orthogonal"]
        assert best.attacks[0].worst_drift == 0.5
        assert best.missing_attacks == ()

    def test_equal_defenses_share_a_rank(self, stored: Stored) -> None:
        runs = [stored("clamp", constrained=50), stored("ablation", constrained=50)]
        group = group_of([*runs, stored("steering", constrained=90)])
        assert places(group) == [(1, "ablation"), (1, "clamp"), (3, "steering")]

    def test_what_no_test_tells_apart_shares_a_rank(self, stored: Stored) -> None:
        """Four flips of a hundred differ: McNemar's exact p is 0.125, whatever the rates say."""
        group = group_of([stored("clamp", constrained=54), stored("ablation", constrained=50)])
        assert places(group) == [(1, "ablation"), (1, "clamp")]
        (pair,) = group.pairs
        assert pair.examples == 100
        assert pair.difference == pytest.approx(0.04)
        assert pair.p_value == pytest.approx(0.125)
        needed = group.defenses[1].examples_to_separate
        assert needed is not None
        assert needed > 1000
        assert "clamp is not told apart from the defense above it" in page_of(group)

    def test_tests_are_adjusted_for_all_pairs_of_the_board(self, stored: Stored) -> None:
        """Six flips that differ have p = 0.031; with three pairs that is no longer below 0.05."""
        two = [stored("a", constrained=50), stored("b", constrained=56)]
        assert [rank for rank, _ in places(group_of(two))] == [1, 2]
        three = group_of([*two, stored("c", constrained=59)])
        assert {p.adjusted for p in three.pairs if {p.first, p.second} == {"a", "b"}} == {0.0625}
        assert [rank for rank, _ in places(three)][:2] == [1, 1]

    def test_a_defense_that_suppresses_13_of_64_cannot_lead(self, stored: Stored) -> None:
        group = group_of(
            [
                stored("hardly", constrained=0, valid=13, left=51),
                stored("clamp", constrained=32, valid=64),
            ]
        )
        assert places(group) == [(1, "clamp"), (2, "hardly")]
        assert (group.defenses[1].under_attack.k, group.defenses[1].under_attack.n) == (51, 64)
        assert group.defenses[1].suppressed == 13

    def test_a_defense_that_suppresses_nothing_comes_last(self, stored: Stored) -> None:
        idle = stored("idle", valid=0, left=100, constrained=0, flags=(flag("no-valid-flips"),))
        assert places(group_of([idle, stored("clamp", constrained=80)])) == [
            (1, "clamp"),
            (2, "idle"),
        ]


class TestNotRanked:
    def test_an_invalid_row_is_shown_below_with_its_reason(self, stored: Stored) -> None:
        invalid = flag("gradient-dishonest", "invalid")
        group = group_of([stored("fraud", constrained=0, flags=(invalid,)), stored("clamp")])
        assert places(group) == [(1, "clamp"), (None, "fraud")]
        assert group.defenses[1].unranked == ("invalid: gradient-dishonest",)
        assert group.pairs == ()
        text = page_of(group)
        assert text.index("| clamp |") < text.index("| fraud |")
        assert "- fraud is not ranked: invalid: gradient-dishonest" in text

    def test_caution_and_note_are_shown_beside_the_rank(self, stored: Stored) -> None:
        flags = (flag("random-recovers"), flag("few-valid-flips", "note"))
        group = group_of([stored("clamp", flags=flags)])
        assert places(group) == [(1, "clamp")]
        assert "random-recovers (caution), few-valid-flips (note)" in page_of(group)

    def test_without_an_attack_that_others_met(self, stored: Stored) -> None:
        runs = [stored("clamp", "orthogonal"), stored("clamp", "unconstrained")]
        group = group_of([*runs, stored("spared", "orthogonal", 0)])
        assert places(group) == [(1, "clamp"), (None, "spared")]
        assert group.defenses[1].unranked == ("unconstrained was not run",)
        assert group.defenses[1].missing_attacks == ("unconstrained",)

    def test_under_a_control_alone(self, stored: Stored) -> None:
        group = group_of([stored("clamp", "random-direction", 0)])
        assert group.defenses[0].unranked == ("no attack but a control was run",)
        both = [stored("clamp", "random-direction", 99), stored("clamp", "orthogonal", 80)]
        assert group_of(both).defenses[0].under_attack.k == 80

    def test_on_other_valid_flips(self, stored: Stored) -> None:
        runs = [stored(attack="orthogonal"), stored(attack="unconstrained", valid=90)]
        assert group_of(runs).defenses[0].unranked == ("its attacks met different valid flips",)

    def test_without_base_examples(self, stored: Stored) -> None:
        group = group_of([stored("clamp", valid=0, constrained=0), stored("ablation")])
        assert places(group) == [(1, "ablation"), (None, "clamp")]


class TestStandardSuite:
    def test_where_it_was_run_it_alone_ranks(self, stored: Stored) -> None:
        group = group_of(
            [
                stored("clamp", "auto-v1", 50),
                stored("ablation", "auto-v1", 60),
                stored("ablation", "orthogonal", 90),
                stored("spared", "orthogonal", 0),
            ]
        )
        assert (group.counted, group.standard_suite) == (("auto-v1",), True)
        assert places(group) == [(1, "clamp"), (2, "ablation"), (None, "spared")]
        assert group.defenses[1].under_attack.k == 60
        assert group.defenses[2].unranked == ("auto-v1 was not run",)
        text = page_of(group)
        assert "Ranked under the standard suite, auto-v1." in text
        assert "- ablation: orthogonal alone did better than what counts" in text

    def test_the_latest_counts(self, stored: Stored) -> None:
        group = group_of([stored("clamp", f"auto-v{n}") for n in (2, 9, 10)])
        assert group.counted == ("auto-v10",)

    @pytest.mark.parametrize(
        "weakened",
        [
            {"attack_settings": {"steps": 1}},
            {"asked": {"flops": 10.0}},
            {"sources": {"attack auto-v1": "0123456789"}},
        ],
    )
    def test_a_weakened_suite_is_none(self, stored: Stored, weakened: dict[str, Any]) -> None:
        group = group_of(
            [stored("clamp", "auto-v1", 80), stored("fraud", "auto-v1", 0, **weakened)]
        )
        assert places(group) == [(1, "clamp"), (None, "fraud")]

    def test_without_it_the_worst_case_is_said_to_be_incomplete(self, stored: Stored) -> None:
        group = group_of([stored("clamp")])
        assert not group.standard_suite
        assert "This worst case is incomplete" in page_of(group)


class TestVersions:
    def test_versions_of_a_plugin_are_never_merged(self, stored: Stored) -> None:
        runs = [
            stored("mine", constrained=k, sources={"defense mine": version * 16})
            for version, k in (("a", 20), ("b", 80))
        ]
        group = group_of(runs)
        assert places(group) == [(1, "mine source=aaaaaaaa"), (2, "mine source=bbbbbbbb")]
        assert [standing.source for standing in group.defenses] == ["a" * 16, "b" * 16]
        text = page_of(group)
        assert cells(text, "mine source=aaaaaaaa")[-1] == "0.20"
        assert cells(text, "mine source=bbbbbbbb")[-1] == "0.80"

    def test_nor_over_the_targets_of_a_task(self, stored: Stored) -> None:
        """The new version was run on one target only, which flatters neither."""
        runs = [
            stored("mine", constrained=k, task=f"alpha/{t}", sources={"defense mine": version})
            for version, t, k in (("old", "a", 20), ("old", "b", 60), ("new", "a", 0))
        ]
        group = group_of(runs)
        assert places(group) == [(1, "mine source=old"), (None, "mine source=new")]
        assert group.defenses[0].under_attack.k == 80
        assert group.defenses[1].unranked == ("orthogonal was not run on alpha/b",)

    def test_other_versions_of_a_task_are_another_group(self, stored: Stored) -> None:
        runs = [stored("clamp", sources={"task alpha": version}) for version in ("a", "b")]
        (board,) = build(runs)
        assert len(board.groups) == 2

    def test_settings_tell_defenses_and_attacks_apart(self, stored: Stored) -> None:
        group = group_of(
            [
                stored(attack_settings={"steps": 5}),
                stored(attack_settings={"steps": 50}),
                stored(settings={"latents": 3}, attack_settings={"steps": 50}),
            ]
        )
        missing = {d.defense: d.missing_attacks for d in group.defenses}
        assert missing == {"clamp": (), "clamp latents=3": ("orthogonal steps=5",)}
        assert sorted(len(d.attacks) for d in group.defenses) == [1, 2]

    def test_the_same_run_made_twice_counts_once(self, stored: Stored) -> None:
        """Alone, and with other tasks, a row is in two runs; the worse for the defense counts."""
        group = group_of([stored("clamp", constrained=50), stored("clamp", constrained=51)])
        (standing,) = group.defenses
        assert (standing.under_attack.k, standing.under_attack.n) == (51, 100)

    def test_a_run_made_again_does_not_hide_that_one_was_invalid(self, stored: Stored) -> None:
        invalid = flag("defense-changed", "invalid")
        for runs in (
            [stored(constrained=50, flags=(invalid,)), stored(constrained=51)],
            [stored(constrained=53), stored(constrained=52, flags=(invalid,))],
        ):
            assert group_of(runs).defenses[0].unranked == ("invalid: defense-changed",)


def test_two_runs_of_one_identity_that_differ_are_refused(stored: Stored, tmp_path: Path) -> None:
    run = stored(constrained=50)
    other = stored(constrained=51)
    there = Path(shutil.copytree(other, tmp_path / "again" / other.name))
    for name in ("result.json", "run.json"):
        text = (there / name).read_text("utf-8").replace(other.name, run.name)
        (there / name).write_text(text, "utf-8")
    for runs in ([run, there], [there, run]):
        with pytest.raises(UserError, match=r"are both run .* and differ in 'alpha'"):
            build(runs)


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
    one = write_boards(build(runs), tmp_path / "one")
    other = write_boards(build([*reversed(runs), *runs]), tmp_path / "other")
    assert [p.name for p in one] == ["organism-alpha.json", "organism.md", "organism-alpha.csv"]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]


@pytest.mark.parametrize(
    "change",
    [
        {"threat_model": "post"},
        {"budget": 0.5},
        {"asked": {"limit": 9}},
        {"perturbation": PerturbationKind(elsewhere=True)},
    ],
)
def test_what_is_not_comparable_is_not_ranked_together(
    stored: Stored, change: dict[str, Any]
) -> None:
    (board,) = build([stored("clamp"), stored("ablation", **change)])
    assert [[d.rank for d in group.defenses] for group in board.groups] == [[1], [1]]


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
    paths = write_boards(
        build([stored(task="beta"), stored(task="alpha", seed=3)]), tmp_path / "out"
    )
    boards = ["organism-alpha", "organism-beta"]
    assert [p.name for p in paths] == [
        *(f"{name}.json" for name in boards),
        "organism.md",
        *(f"{name}.csv" for name in boards),
    ]
    board = Leaderboard.model_validate_json(paths[0].read_text())
    (entry,) = board.groups[0].entries
    assert entry.command == (
        "saebench run --target organism --defense clamp --attack orthogonal --task alpha "
        "--threat-model reclamp --budget 0.5 --seed 3 --plugin mine.py"
    )
    assert entry.row == row("alpha", seed=3)


def test_file_names_hold_for_any_target(stored: Stored, tmp_path: Path) -> None:
    paths = write_boards(
        build([stored(target="some/model+sae@blocks.1.hook_resid_post")]), tmp_path
    )
    assert {path.parent for path in paths} == {tmp_path}
    stem = "some_model_sae_blocks.1.hook_resid_post"
    for path, wanted in zip(
        paths,
        (rf"{stem}-alpha-\w{{12}}.json", rf"{stem}-\w{{12}}.md", rf"{stem}-alpha-\w{{12}}.csv"),
        strict=True,
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
    paths = write_boards(build(runs), tmp_path / "boards")
    assert len({path.name.lower() for path in paths}) == len(paths) == 6
    assert {path.parent for path in paths} == {tmp_path / "boards"}


def cells(text: str, defense: str) -> list[str]:
    """The cells of a defense's row on a page."""
    (line,) = [line for line in text.splitlines() if f"| {defense} |" in line]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_page_has_defenses_down_and_attacks_across(stored: Stored) -> None:
    text = page(
        build(
            [
                stored("clamp", "orthogonal", 90, flags=(flag("random-recovers"),)),
                stored("clamp", "unconstrained", 10),
                stored("ablation", "orthogonal", 40),
                stored("ablation", "unconstrained", 10),
            ]
        )
    )
    assert "| kept | KL | flags | orthogonal | unconstrained |" in text
    assert cells(text, "clamp")[-2:] == ["0.90*", "0.10"]
    assert cells(text, "ablation")[-2:] == ["0.40", "0.10"]
    assert text.index("| ablation |") < text.index("| clamp |")  # the more robust one first


def test_a_task_with_several_targets_counts_the_examples_of_all(stored: Stored) -> None:
    runs = [stored(task=f"alpha/{name}", constrained=k) for name, k in (("a", 20), ("b", 60))]
    (board,) = build(runs)
    assert board.task == "alpha"
    (standing,) = board.groups[0].defenses
    assert (standing.under_attack.k, standing.under_attack.n) == (80, 200)
    assert cells(page([board]), "clamp")[-1] == "0.40"


def test_the_page_shows_what_a_detector_saw(stored: Stored) -> None:
    seen = made(Detection, attacked=rate(97))
    text = page(build([stored(detection=seen, alarmed=True)]))
    assert cells(text, "clamp")[-1] == "0.80, seen 1.00"


def test_groups_of_one_task_say_in_what_they_differ(stored: Stored) -> None:
    text = page(build([stored(asked={"limit": 9}), stored(asked={"limit": 5})]))
    assert "### alpha, limit 5\n" in text
    assert "### alpha, limit 9\n" in text


def test_partial_run_is_refused(stored: Stored) -> None:
    with pytest.raises(UserError, match="is a partial run; finish it first: saebench run"):
        build([stored("clamp"), stored("ablation", status="partial")])


def test_folder_without_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        build([tmp_path])


def test_without_the_facts_of_a_run_nothing_is_ranked(stored: Stored) -> None:
    run = stored()
    (run / "run.json").unlink()
    with pytest.raises(UserError, match="says nothing of task 'alpha'; repeat the run"):
        build([run])
