"""Answers of examples."""

from __future__ import annotations

from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.model.examples import Example


@pytest.mark.parametrize("empty", [(), []])
def test_an_answer_without_a_token_is_named(empty: Any) -> None:
    with pytest.raises(UserError, match="'one' has an answer without a token"):
        Example("one", (1, 2), ((3,), empty))
    with pytest.raises(UserError, match="'one' has an answer without a token"):
        Example("one", (1, 2), ((3,),), wrong=empty)
