"""Runs are compared flip by flip, on what all of them attacked, and differences are named."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.cli import main
from saebench_recovery.results.compare import Comparison, compare
from saebench_recovery.results.named_run import NamedRun
from saebench_recovery.results.report import comparison_table
from saebench_recovery.results.report.comparison_table import print_comparisons
from saebench_recovery.schema import PerturbationKind, Rate, Record, SuiteMember
from saebench_recovery.scoring.measures import MEASURES
from saebench_recovery.spec import RunSpec
from tests.fakes import SITE, record, row, run_result, write_run

pytestmark = pytest.mark.usefixtures("made_up_runs")

Stored = Callable[..., Path]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Write a run on task alpha from `(id, recovered)` pairs or rows, and return its folder."""
    numbers = itertools.count()

    def store(
        flips: Sequence[tuple[str, bool]] | Sequence[Record],
        attack: str = "orthogonal",
        task: str = "alpha",
        settings: dict[str, Any] | None = None,
        changes: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Path:
        records = [
            one if isinstance(one, Record) else record(task, one[0], recovered=one[1])
            for one in flips
        ]
        if attack != "suite":
            records = [r.model_copy(update={"attack": attack}) for r in records]
        spec = RunSpec(attack=attack, tasks=(task,), **fields)
        configs = {"site": SITE, "defense": settings or {}, "attack": {}, "task": {}}
        result = run_result(
            row(task, attack=attack, **(changes or {})),
            identity=f"run{next(numbers)}",
            spec={**spec.model_dump(mode="json"), "resolved": {task: configs}},
        )
        return write_run(tmp_path / "runs" / result.identity, result, records)

    return store


def flip(id: str, *, recovered: bool, **changes: Any) -> Record:
    return record("alpha", id, recovered=recovered, **changes)


def only(runs: Sequence[Path | NamedRun], **options: Any) -> Comparison:
    (comparison,) = compare(runs, **options)
    return comparison


def recovered(comparison: Comparison) -> list[int]:
    """Flips that each run recovered."""
    rates = [run.measures["recovery"] for run in comparison.runs]
    return [rate.k for rate in rates if isinstance(rate, Rate)]


def test_only_flips_that_all_runs_attacked_count(stored: Stored) -> None:
    first = stored([("a", True), ("b", True), ("c", False)])
    second = stored([("b", True), ("c", True), ("d", True)], "unconstrained")
    comparison = only([first, second])
    assert comparison.flips == 2
    assert recovered(comparison) == [1, 2]
    assert any("valid flips: 3 | 3" in line for line in comparison.unequal)


def test_differences_are_paired(stored: Stored) -> None:
    ids = [f"flip{i}" for i in range(40)]
    first = stored([(id, i % 2 == 0) for i, id in enumerate(ids)])
    second = stored([(id, i % 2 == 0 or i < 20) for i, id in enumerate(ids)], "unconstrained")
    recovery = next(p for p in only([first, second]).differences if p.measure == "recovery")
    assert (recovery.first_larger, recovery.this_larger) == (0, 10)
    assert recovery.difference == pytest.approx(0.25)
    assert recovery.p_value == pytest.approx(2 * 0.5**10)  # ten coins that all fell one way
    assert recovery.low is not None
    assert recovery.low > 0


def test_drift_is_compared_where_both_runs_have_one(stored: Stored) -> None:
    def drifts(*values: float | None) -> list[Record]:
        scopes = [{"readout": {"relative_l2": v}, "later": {"relative_l2": None}} for v in values]
        return [flip(str(i), recovered=True, drift=scope) for i, scope in enumerate(scopes)]

    first = stored(drifts(0.5, 0.5, 0.5, None, 0.5))
    second = stored(drifts(0.1, 0.1, 0.6, 0.1, 0.5), "unconstrained")
    drift = next(p for p in only([first, second]).differences if p.measure == "drift")
    assert drift.difference == pytest.approx((-0.4 - 0.4 + 0.1 + 0) / 4)
    assert (drift.first_larger, drift.this_larger) == (2, 1)


def test_runs_that_agree_differ_in_nothing(stored: Stored) -> None:
    flips = [(f"flip{i}", i < 5) for i in range(9)]
    comparison = only([stored(flips), stored(flips, "unconstrained")])
    assert {(p.difference, p.p_value) for p in comparison.differences} == {(0.0, 1.0)}
    assert comparison.unequal == ()
    (line,) = comparison.verdicts
    assert re.search("is not told apart from clamp against orthogonal: .*, on equal footing$", line)


def test_the_interval_resamples_source_items(stored: Stored) -> None:
    def at(clusters: int) -> float:
        flips = [
            [
                flip(str(i), recovered=i % clusters < own, cluster=f"{i % clusters}")
                for i in range(60)
            ]
            for own in (0, clusters // 2)
        ]
        pair = only([stored(flips[0]), stored(flips[1], "unconstrained")]).differences[0]
        assert pair.low is not None
        assert pair.high is not None
        return pair.high - pair.low

    assert at(6) > 2 * at(60)


def test_clusters_are_what_a_test_may_turn_round(stored: Stored) -> None:
    """Sixty flips of five questions that all went one way: 2 in 2^5, not 2 in 2^60."""
    runs = [
        stored([flip(str(i), recovered=own, cluster=f"{i % 5}") for i in range(60)], attack)
        for own, attack in ((False, "orthogonal"), (True, "unconstrained"))
    ]
    comparison = only(runs)
    assert comparison.clusters == 5
    assert comparison.differences[0].p_value >= 2 / 2**5


def test_too_few_source_items_for_any_p_value_are_named(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for count, named in ((5, True), (6, False)):
        flips = [flip(str(i), recovered=i < 3, cluster=f"{i % count}") for i in range(24)]
        runs = [stored(flips), stored(flips, "unconstrained")]
        monkeypatch.setattr("sys.argv", ["saebench", "compare", *map(str, runs)])
        with pytest.raises(SystemExit):
            main()
        assert ("no p-value can reach 0.05" in capsys.readouterr().out) is named


def test_with_matched_flops_later_finds_do_not_count(stored: Stored) -> None:
    cheap = [flip(str(i), recovered=True, flops=10.0, flops_recovers=5.0) for i in range(4)]
    dear = [flip(str(i), recovered=True, flops=90.0, flops_recovers=8.0 + 4 * i) for i in range(4)]
    idle = [flip(str(i), recovered=True) for i in range(4)]  # spends nothing, and sets no limit
    runs = [stored(cheap), stored(dear, "unconstrained"), stored(idle, "random-direction")]
    plain, matched = only(runs), only(runs, match_flops=True)
    assert recovered(plain) == [4, 4, 4]
    assert any("FLOPs" in line for line in plain.unequal)
    assert matched.flops == 10.0
    assert recovered(matched) == [4, 1, 4]
    assert matched.runs[1].measures["constrained"].n == 4
    # Figures of the end of the search do not stand beside those of the moment before.
    assert {pair.measure for pair in matched.differences} <= {
        measure.name for measure in MEASURES if measure.needs_recovery
    }
    assert (matched.runs[1].drift, "norm" in matched.runs[1].measures) == (None, False)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 3}, "seed: 0 | 3"),
        ({"budget": 0.25}, "budget: 0.5 | 0.25"),
        ({"threat_model": "post"}, "threat_model: reclamp | post"),
        ({"settings": {"latents": 9}}, "defense latents: 4 | 9"),
    ],
    ids=str,
)
def test_unequal_footing_is_named(stored: Stored, changed: dict[str, Any], named: str) -> None:
    flips, settings = [("a", True)], {"settings": {"latents": 4}}
    comparison = only([stored(flips, **settings), stored(flips, **{**settings, **changed})])
    assert comparison.unequal == (named,)
    assert comparison.verdicts[0].endswith(f"not on equal footing: {named.partition(':')[0]}")


def test_runs_that_are_called_the_same_are_told_apart(stored: Stored) -> None:
    flips = [("a", True)]
    runs = [stored(flips, settings={"latents": n}) for n in (4, 9)]
    names = [run.name for run in only(runs).runs]
    assert ["latents=4" in names[0], "latents=9" in names[1]] == [True, True]


def test_a_suite_is_compared_by_its_worst_case(stored: Stored) -> None:
    tries = [("hasty", "a", False), ("late", "a", True), ("hasty", "b", True)]
    records = [flip(id, recovered=ok, attack=attack, flops=2.0) for attack, id, ok in tries]
    members = [SuiteMember(attack=name, tried=1, broken=1, flops=1) for name in ("hasty", "late")]
    several = {"suite": tuple(members), "perturbation": PerturbationKind(kind="several")}
    suite = stored(records, "suite", changes=several)
    comparison = only([stored([("a", False), ("b", False)]), suite])
    assert recovered(comparison) == [0, 2]
    assert comparison.runs[1].flops.mean == (2 + 2 + 2) / 2
    # Norms of several kinds are no distribution, and are not set beside others.
    assert comparison.runs[1].measures["norm"].n == 0
    assert "norm" not in {pair.measure for pair in comparison.differences}


def test_what_cannot_be_compared_is_one_line(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored([("a", True)])
    for others, reason in (
        ([], "two or more"),
        ([stored([("a", True)], task="beta")], "no task in common"),
        ([stored([("b", True)])], "no valid flip in common"),
    ):
        with pytest.raises(UserError, match=reason):
            compare([run, *others])
    monkeypatch.setattr("sys.argv", ["saebench", "compare", str(run), str(run), "--match", "time"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --match 'time': only flops can be matched\n"


def test_the_tables_show_every_run(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flips = [(f"flip{i}", i < 5) for i in range(9)]
    runs = [stored(flips), stored([(id, True) for id, _ in flips], "unconstrained", seed=3)]
    monkeypatch.setattr("sys.argv", ["saebench", "compare", *map(str, runs)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for expected in ("9 flips in common", "clamp against unconstrained", "+0.44", "seed: 0 | 3"):
        assert expected in shown
    assert all(measure.title in shown for measure in MEASURES)


def test_more_runs_than_anybody_reads_side_by_side_have_no_table(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(twenty(stored))
    monkeypatch.setattr(comparison_table, "MOST", 2)
    print_comparisons(found)
    shown = capsys.readouterr().out
    assert "──" not in shown  # the rule below a table's heads
    for run in found[0].runs:
        assert run.name in shown
    assert all(verdict in shown for verdict in found[0].verdicts)
    assert "3 runs are too many to stand side by side" in shown
    assert "--json" in shown


def twenty(stored: Stored) -> list[Path]:
    """Three runs on twenty flips that recover none, half and all, at 10, 10 and 30 FLOPs."""
    return [
        stored(
            [
                flip(str(i), recovered=i < count, flops=flops, flops_recovers=flops)
                for i in range(20)
            ],
            attack,
        )
        for count, flops, attack in (
            (0, 10.0, "orthogonal"),
            (10, 10.0, "unconstrained"),
            (20, 30.0, "gcg"),
        )
    ]


def test_a_verdict_says_who_recovers_more_at_which_cost(stored: Stored) -> None:
    comparison = only(twenty(stored))
    half, full = comparison.verdicts
    assert half.startswith(
        "clamp against unconstrained recovers more than clamp against orthogonal"
    )
    assert "+0.50 [" in half
    assert half.endswith("at equal cost, on equal footing")
    assert "+1.00 [+0.72, +1.00] of the flips (p = 1.9e-06)" in full  # 2 in 2^20
    assert "at unequal cost (30 and 10 FLOPs on a flip)" in full
    matched = only(twenty(stored), match_flops=True).verdicts[0]
    assert "at 10 FLOPs on each flip" in matched


def test_the_baseline_goes_by_name_or_identity(stored: Stored) -> None:
    first, second, third = twenty(stored)
    named = [NamedRun(first, "mine"), NamedRun(second), NamedRun(third, "gcg")]
    by_name = only(named, baseline="gcg")
    assert [run.name for run in by_name.runs] == ["gcg", "mine", "clamp against unconstrained"]
    assert "recovers less than gcg" in by_name.verdicts[0]
    assert only(named, baseline="run1").runs[0].identity == "run1"
    for wrong, line in (("run", "several"), ("nobody", "none"), ("", "none")):
        with pytest.raises(UserError, match=f"{line} of the runs is that; there are: mine=run0"):
            compare(named, baseline=wrong)
    with pytest.raises(UserError, match="two runs have one name"):
        compare([NamedRun(first, "mine"), NamedRun(second, "mine")])


def test_json_and_markdown_say_the_same(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = twenty(stored)
    words = [f"a|b={runs[0]}", f"second={runs[1]}"]

    def printed(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["saebench", "compare", *words, *options])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    (found,) = json.loads(printed("--json"))
    assert [run["name"] for run in found["runs"]] == ["a|b", "second"]
    assert (
        Comparison.model_validate(found).verdicts
        == only([NamedRun(runs[0], "a|b"), NamedRun(runs[1], "second")]).verdicts
    )
    page = printed("--markdown")
    assert "- **verdict:** second recovers more than a\\|b" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {5, 9}
    assert printed("--json", "--markdown") == ""
