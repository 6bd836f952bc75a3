"""Measures are declared once: what scoring saw becomes what a record holds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from saebench_recovery.model.examples import Example, Output
from saebench_recovery.schema import Controls, Row
from saebench_recovery.scoring.measures import MEASURES, Measure, measured
from saebench_recovery.scoring.replay import first_choice
from tests.fakes import row, seen
from tests.tiny import TinyTask


def test_verdicts_are_bool_numbers_are_float_and_nan_is_null() -> None:
    true_E = torch.tensor([True, False])
    first, second = measured(
        seen(2, recovered_E=true_E, fidelity_E=torch.tensor([0.25, torch.nan]), norm_E=None)
    )
    assert (first["recovery"], second["recovery"]) == (True, False)
    assert all(isinstance(first[m.name], bool) for m in MEASURES if m.kind == "rate")
    assert (first["fidelity"], second["fidelity"]) == (0.25, None)
    assert (first["norm"], second["norm"]) == (None, None)


@pytest.mark.parametrize("measure", [m for m in MEASURES if m.needs_recovery], ids=lambda m: m.name)
def test_what_needs_a_recovery_is_false_without_one(measure: Measure) -> None:
    names = ("recovered_E", "within_E", "base_like_E", "nothing_E", "random_E", "wrong_E")
    true_E = torch.tensor([True])
    everything = dict.fromkeys(names, true_E)
    (with_it,), (without,) = (
        measured(seen(1, **{**everything, "recovered_E": recovered_E}))
        for recovered_E in (true_E, ~true_E)
    )
    assert (with_it[measure.name], without[measure.name]) == (True, False)


def test_the_first_choice_is_the_vocabularys_and_not_the_candidates() -> None:
    logits_EV = torch.tensor([[0.0, 3.0, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0]])
    examples = tuple(Example(str(e), (0,), ((1,), (2,))) for e in range(2))
    output = Output(examples, logits_EV[:, [1, 2]], logits_EV.log_softmax(1))
    found = first_choice(TinyTask(), output)
    assert found is not None
    assert found.tolist() == [True, False]
    (one, other) = measured(seen(2, first_choice_E=found))
    assert (one["first_choice"], other["first_choice"]) == (True, False)


def test_where_no_next_token_is_read_there_is_no_first_choice() -> None:
    examples, nothing = (Example("a", (0,), ((1,),)),), torch.zeros(1, 0)
    pooled = Output(examples, nothing, pooled_ED=torch.zeros(1, 4))
    written = Output(examples, nothing, torch.zeros(1, 4), texts=("a",))
    generating = TinyTask()
    generating.new_tokens = 1
    assert first_choice(TinyTask(), pooled) is first_choice(generating, written) is None
    (flip,) = measured(seen(1, first_choice_E=None))
    assert flip["first_choice"] is None


def test_constrained_needs_drift_inside_the_limits_and_reactivation_spoils() -> None:
    true_E = torch.tensor([True])
    (flip,) = measured(seen(1, recovered_E=true_E, reactivated_E=true_E))
    assert (flip["recovery"], flip["constrained"], flip["zero_reactivation"]) == (
        True,
        False,
        False,
    )


def test_limits_that_are_held_against_nothing_give_no_verdict() -> None:
    true_E, first_E = torch.tensor([True, True]), torch.tensor([True, False])
    everything = {"recovered_E": true_E, "within_E": true_E, "base_like_E": true_E}
    bound, unbound = measured(seen(2, **everything, bound_E=first_E))
    assert (bound["constrained"], bound["faithful"]) == (True, True)
    assert (unbound["constrained"], unbound["faithful"], unbound["base_like"]) == (None, None, True)


def test_a_row_reads_its_properties_from_measures() -> None:
    some = row()
    declared = {measure.name: measure.kind for measure in MEASURES}
    assert len(declared) == len(MEASURES)
    assert set(Controls.model_fields) <= set(declared)
    for name in ("recovery", "constrained", "base_like", "fidelity", "norm"):
        assert getattr(some, name) == some.measures[name]
    assert Row.model_validate_json(some.model_dump_json()) == some


def test_nothing_downstream_of_records_imports_torch() -> None:
    modules = ("scoring.aggregate", "scoring.flags", "scoring.measures", "results.compare")
    tables = ("results.pages", "results.report.table", "results.report.comparison_table")
    imports = "; ".join(f"import saebench_recovery.{name}" for name in (*modules, *tables))
    code = f"{imports}; import sys; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
