"""The faults of plugins become one line each, and nothing else does."""

from __future__ import annotations

import pytest
import torch

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import Plugin, PluginError, who_ran_out


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


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class ExitingError(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ValueError("no name")


class NamelessError(Exception, metaclass=Nameless):
    pass


class Aside(BaseException):
    """What no `except Exception` sees."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError:"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit(), "GeneratorExit:"),
        (Aside("by the way"), "Aside: by the way"),
        (BaseExceptionGroup("many", [Aside()]), "BaseExceptionGroup: many (1 sub-exception)"),
        (MuteError(), "MuteError"),
        (ExitingError(), "ExitingError"),
        (NamelessError("words"), "NamelessError: words"),
    ],
    ids=lambda said: said if isinstance(said, str) else "raises",
)
def test_whatever_is_raised_is_one_line(error: BaseException, said: str) -> None:
    class Raises(Interface):
        name = "raises"
        new_tokens = property(lambda self: self.examples())

        def examples(self) -> None:
            raise error

    with pytest.raises(PluginError) as caught:
        Raises().examples()
    assert str(caught.value) == f"task 'raises': examples raised {said}"
    with pytest.raises(PluginError):
        _ = Raises().new_tokens


def test_a_property_is_named_as_it_is_asked_for() -> None:
    class Raises(Interface):
        name = "raises"
        label = property(lambda self: 1 / 0)

    with pytest.raises(PluginError, match="'raises': label raised ZeroDivisionError"):
        _ = Raises().label


def test_what_the_harness_asks_and_nobody_wrote_is_said_of_the_plugin() -> None:
    with pytest.raises(PluginError, match="examples raised NotImplementedError"):
        Interface().examples()


def test_helpers_are_left_alone() -> None:
    with pytest.raises(ValueError, match="its own affair"):
        Broken().helper()


@pytest.mark.parametrize(
    "error", [UserError("bad input"), torch.OutOfMemoryError("full"), KeyboardInterrupt()]
)
def test_bad_input_a_full_device_and_who_stops_the_run_pass(error: BaseException) -> None:
    class Passes(Interface):
        name = "passes"

        def examples(self) -> None:
            raise error

    with pytest.raises(type(error)) as caught:
        Passes().examples()
    assert caught.value is error
    if isinstance(error, torch.OutOfMemoryError):
        assert who_ran_out(error) == "task 'passes': examples: "


def test_notes_that_say_nothing_are_no_name() -> None:
    full = torch.OutOfMemoryError("full")
    full.__notes__ = []

    class Passes(Interface):
        name = "passes"

        def examples(self) -> None:
            raise full

    assert who_ran_out(full) == ""
    with pytest.raises(torch.OutOfMemoryError):
        Passes().examples()
    assert who_ran_out(full) == "task 'passes': examples: "


def test_what_messages_call_a_plugin_is_its_name() -> None:
    with pytest.raises(TypeError, match="Titled has a title of its own"):

        class Titled(Interface):
            title = property(lambda self: 1 / 0)
