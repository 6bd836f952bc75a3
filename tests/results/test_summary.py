"""The mean over the targets of a task, and how it is shown."""

from __future__ import annotations

import pytest

from saebench_recovery.results.report.table import print_result
from saebench_recovery.results.summary import Interval, by_task, over_targets, worst_drift
from saebench_recovery.schema import Drift, Mean, Rate, Record
from saebench_recovery.scoring.aggregate import aggregate
from saebench_recovery.scoring.measures import MEASURES, Measure, measured
from tests.fakes import facts, flag, made, mean, rate, row, run_result, seen


def test_targets_are_grouped_by_their_task() -> None:
    rows = [row("ioi"), row("tpp/nurse"), row("tpp/pilot")]
    assert by_task(rows) == {"ioi": rows[:1], "tpp": rows[1:]}


@pytest.mark.parametrize("value", [rate(30), mean(0.3)])
def test_one_target_keeps_its_interval(value: Rate | Mean) -> None:
    interval = over_targets([value])
    centre = value.rate if isinstance(value, Rate) else value.mean
    assert interval is not None
    assert (interval.centre, interval.low, interval.high) == pytest.approx(
        (centre, value.low, value.high)
    )


def test_targets_count_alike_whatever_their_size() -> None:
    interval = over_targets([rate(10, 10), rate(0, 90)])
    assert interval is not None
    assert interval.centre == 0.5


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
    rows = (
        row("ioi", 90),
        row("tpp/nurse", 80, flags=(flag("no-gradient"),)),
        row("tpp/pilot", 40),
    )
    print_result(run_result(*rows), full=True)
    printed = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if "│" in line}
    assert "tpp, mean of 2" in printed
    assert "0.90" in lines["recovery"]
    assert "0.60" in lines["recovery"]
    assert "no-gradient (1 of 2)" in lines["flags"]
    assert "0.80" in lines["nurse"]
    assert "0.40" in lines["pilot"]
    assert all(measure.title in lines for measure in MEASURES)


def test_the_headline_fits_80_columns_and_a_dozen_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four tasks, whatever the figures; what flags mean stands below, with their tasks."""
    monkeypatch.setenv("COLUMNS", "80")
    flags = (flag("no-gradient"), flag("injection-as-easy"), flag("retained-too-low", "invalid"))
    full, none = row("ioi", 100, flags=flags), row("refusal", 0, 0, flags=flags[:1])
    rows = (full, row("tpp/nurse", 80), row("tpp/pilot", 40), row("unlearning", 55), none)
    print_result(run_result(*rows))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    table = lines[lines.index(next(line for line in lines if "─" in line)) + 1 :]
    figures = table[: table.index(next(line for line in table if line.startswith("reclamp")))]
    assert len(figures) == 12
    assert not any("…" in line for line in figures)
    assert "no-gradient (caution, ioi, refusal): no-gradient is so; mend it" in lines


def test_a_run_that_was_killed_in_its_first_task_has_no_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_result(run_result(status="partial"))
    assert "partial: repeat the command" in capsys.readouterr().out


def test_a_new_measure_is_one_entry(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in records, in the row and its JSON, and in the table without another edit."""
    loud = Measure(
        name="loudness",
        kind="mean",
        unit="dB",
        label="how loud",
        description="made up",
        of=lambda seen: 10 * seen.fidelity_E,
    )
    monkeypatch.setattr("saebench_recovery.scoring.measures.MEASURES", (*MEASURES, loud))
    monkeypatch.setenv("COLUMNS", "160")
    flips = [
        made(Record, attack="orthogonal", id=str(i), measures=values)
        for i, values in enumerate(measured(seen(3)))
    ]
    aggregated = aggregate(facts(), flips)
    assert aggregated.measures["loudness"].n == 3
    assert '"loudness":{"n":3,' in aggregated.model_dump_json()
    print_result(run_result(aggregated), full=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "how loud, dB" in line]
    assert "5.00" in line
