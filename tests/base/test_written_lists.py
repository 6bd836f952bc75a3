"""Lists in cells: whatever Python, pandas, numpy and JSON write is read back, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saebench_recovery.base.written_lists import written_list

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=5)


@given(TEXTS)
def test_every_way_of_writing_texts(items: list[str]) -> None:
    array = np.array(items, dtype=object)
    for written in (json.dumps(items), str(items), str(tuple(items)), str(array), repr(array)):
        assert written_list(written) == items


def test_numbers_are_read_as_they_stand() -> None:
    assert written_list(str(np.array([1, 20]))) == ["1", "20"]
    assert written_list(str(np.array([0.5, 2.0, 1e-9]))) == ["5.e-01", "2.e+00", "1.e-09"]
    assert written_list("[1, 2.5]") == [1, 2.5]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abcd",
        "{}",
        "'a'",
        "['a'",
        "[a, b]",
        "['a', b]",
        "['a' 'b', 'c']",
        "[['a'], ['b']]",
        r"['\N{nothing}']",
        r"['\ud800']",
        "[__import__('os')]",
        "[" * 10_000,
    ],
)
def test_what_is_no_list_of_texts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"list|item|surrogate") as caught:
        written_list(text)
    assert "\n" not in str(caught.value)
