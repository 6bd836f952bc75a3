"""The faults of plugins become one line each, and nothing else does."""

from __future__ import annotations

import pytest
import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import Plugin, PluginError


class Interface(Plugin, kind="task"):
    def examples(self) -> None:
        raise NotImplementedError("the harness's own")


class Broken(Interface):
    name = "broken"

    def examples(self) -> None:
        raise ValueError("two\nlines")

    def helper(self) -> None:
        raise ValueError("its own affair")


def test_the_line_names_plugin_method_and_fault() -> None:
    with pytest.raises(PluginError) as caught:
        Broken().examples()
    assert str(caught.value) == "task 'broken': examples raised ValueError: two lines"
    assert isinstance(caught.value.__cause__, ValueError)


def test_what_the_harness_does_not_ask_is_left_alone() -> None:
    with pytest.raises(ValueError, match="its own affair"):
        Broken().helper()
    with pytest.raises(NotImplementedError):
        Interface().examples()


@pytest.mark.parametrize("error", [UserError("bad input"), torch.OutOfMemoryError("full")])
def test_bad_input_and_a_full_device_pass(error: Exception) -> None:
    class Passes(Interface):
        def examples(self) -> None:
            raise error

    with pytest.raises(type(error)) as caught:
        Passes().examples()
    assert caught.value is error
