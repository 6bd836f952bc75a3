"""Prompts and models that would make every figure wrong are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.interfaces import (
    Example,
    Split,
)
from saebench_recovery.targets.target import Target
from tests.soundness.setting import (
    Zero,
    clamp,
    run,
)
from tests.tiny import BOS, TinyTask, shared_target, tiny_model, tiny_target


@pytest.mark.parametrize("extra", [(BOS, BOS), ()], ids=["two", "none"])
def test_a_prompt_without_exactly_one_bos_is_refused(extra: tuple[int, ...]) -> None:
    class Careless(TinyTask):
        def examples(self, target: Target, split: Split) -> Sequence[Example]:
            found = super().examples(target, split)
            return [replace(e, prompt=(*extra, *e.prompt[1:])) for e in found]

    with pytest.raises(UserError, match="exactly one BOS"):
        run(clamp(), Zero(), task=Careless())


def test_encoding_adds_exactly_one_bos() -> None:
    target = shared_target("gpt2")
    assert target.encode("words").count(BOS) == 1
    assert target.encode("words")[0] == BOS


def test_a_model_that_computes_nan_is_refused() -> None:
    broken = tiny_model("gpt2")
    next(iter(broken.parameters())).data[5] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        tiny_target("gpt2", model=broken)
