"""The mean over the targets of a task, and how it is shown."""

from __future__ import annotations

import pytest

from saebench_recovery.results.report.summary import Interval, by_task, over_targets, worst_drift
from saebench_recovery.results.report.table import print_result
from saebench_recovery.schema import Drift, Mean, Rate
from tests.fakes import made, mean, rate, row
from tests.results.test_store import result


def test_targets_are_grouped_by_their_task() -> None:
    rows = [row("ioi"), row("tpp/nurse"), row("tpp/pilot")]
    assert by_task(rows) == {"ioi": rows[:1], "tpp": rows[1:]}


@pytest.mark.parametrize("value", [rate(30), mean(0.3)])
def test_one_target_keeps_its_interval(value: Rate | Mean) -> None:
    found = over_targets([value])
    centre = value.rate if isinstance(value, Rate) else value.mean
    assert found is not None
    assert (found.centre, found.low, found.high) == pytest.approx((centre, value.low, value.high))


def test_targets_count_alike_whatever_their_size() -> None:
    found = over_targets([rate(10, 10), rate(0, 90)])
    assert found is not None
    assert found.centre == 0.5


def test_more_targets_narrow_the_interval() -> None:
    one, four = over_targets([rate(50)]), over_targets([rate(50)] * 4)
    assert one is not None
    assert four is not None
    assert four.centre == one.centre
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2)


def test_a_target_without_flips_has_no_say() -> None:
    assert over_targets([rate(0, 0), rate(40)]) == over_targets([rate(40)])
    assert over_targets([rate(0, 0)]) is None
    assert over_targets([]) is None
    assert isinstance(over_targets([mean(1.0)]), Interval)


def test_worst_drift_is_that_of_the_worst_row() -> None:
    quiet, loud = (
        row(drift={"perturbed": made(Drift, relative_l2=mean(value))}) for value in (0.1, 0.4)
    )
    assert worst_drift(quiet, loud) == (0.4, "perturbed")


def test_table_has_the_mean_and_every_target(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    rows = (row("ioi", 90), row("tpp/nurse", 80, flags=("no-gradient",)), row("tpp/pilot", 40))
    names = ("defense", "attack", "target", "threat_model", "budget", "budget_unit", "seed")
    said = dict.fromkeys(names, "?") | {"protocol": None}
    print_result(result().model_copy(update={"rows": rows, "spec": said}))
    printed = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if "│" in line}
    assert "tpp, mean of 2" in printed
    assert "0.90" in lines["recovery"]
    assert "0.60" in lines["recovery"]
    assert "no-gradient (1 of 2)" in lines["flags"]
    assert "0.80" in lines["nurse"]
    assert "0.40" in lines["pilot"]
