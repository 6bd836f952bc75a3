"""Each attack of `tests.cases.searches` is flagged by its name, or gains nothing by its trick."""

from __future__ import annotations

import pytest

from tests.cases.searched import SEARCHES, honest, of_search, outcome
from tests.cases.table import PAGE, line_of_search


@pytest.mark.parametrize("name", SEARCHES)
def test_a_case_gets_nowhere(name: str) -> None:
    row = of_search(name)
    assert outcome(name, row) != ("", "")
    assert line_of_search(name, row) in PAGE.read_text("utf-8").splitlines()
    assert row.row.controls.nothing.k == 0  # what judges is still the defense


def test_an_honest_search_is_not_flagged_as_one_of_them() -> None:
    named = honest().row.flag_names
    assert not {"search-misled", "constraint-broken", "judge-replaced"} & set(named)
