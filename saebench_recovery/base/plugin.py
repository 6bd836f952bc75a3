"""What the three kinds of plugins have in common, and the one place where their faults are caught.

Whatever a plugin's own method raises becomes one line that names the plugin, the method and the
fault. This holds wherever the method is called from, because it is the class that is guarded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from saebench_recovery.base.errors import UserError

PLUGIN_FILES = "saebench_plugin_"  # what the modules of users' files are called by begins so


def _each_once(indices: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(indices)) != len(indices):
        raise ValueError("an index stands twice")
    return indices


Indices = Annotated[
    tuple[Annotated[int, Field(ge=0, le=2**31)], ...],
    Field(min_length=1),
    AfterValidator(_each_once),
]
"""Indices of latents, each once."""

# The methods through which the harness asks a plugin; helpers of its own are not among them.
ASKED = frozenset(
    {
        *("fit", "intervene", "alarm"),
        *("examples", "attribution", "margins", "objective", "behaviour", "stopped"),
        *("fidelity", "base_like", "figures", "side_figures", "variants"),
        *("positions", "insertion", "beginnings", "never_learned"),
        *("suite", "sites", "promise", "search", "shortest"),
    }
)


class PluginConfig(BaseModel):
    """Settings of one plugin: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PluginError(UserError):
    """A plugin's method that raised, or returned what it must not.

    `fault` is the name of the finding of `saebench check` that it is.
    """

    def __init__(self, title: str, method: str, problem: str, *, fault: str = "raises") -> None:
        super().__init__(f"{title}: {method} {problem}")
        self.fault = fault
        self.kind = title.partition(" ")[0]


class Plugin:
    """Name and validated configuration, common to the three kinds."""

    kind: ClassVar[str] = "plugin"
    data_files: ClassVar[tuple[Path, ...]] = ()  # a run's identity follows what they hold
    name: ClassVar[str] = ""  # set by the registry

    class Config(PluginConfig):
        pass

    def __init__(self, config: PluginConfig | None = None) -> None:
        self.config = config if config is not None else self.Config()

    def __init_subclass__(cls, *, kind: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind:  # an interface, whose own methods are the harness's
            cls.kind = kind
            return
        for name in ASKED & vars(cls).keys():
            method = vars(cls)[name]
            if isinstance(method, FunctionType):
                setattr(cls, name, _guarded(method))

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.kind} {(self.name or type(self).__name__)!r}"


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, with what it raises turned into a `PluginError`.

    Bad input and an accelerator that is full are reported by others: they pass, bad input with the
    kind of the plugin. An attack's search calls the defense and the task, which say so themselves.
    """

    @functools.wraps(method)
    def guarded(self: Plugin, *args: Any, **named: Any) -> Any:
        try:
            return method(self, *args, **named)
        except UserError as error:
            if self.kind != "attack" or not error.kind:
                error.kind = self.kind
            raise
        except Exception as error:
            kind = type(error)
            if (kind.__module__, kind.__name__) == ("torch", "OutOfMemoryError"):  # not imported
                raise
            raise PluginError(self.title, method.__name__, f"raised {one_line(error)}") from error

    return guarded


def one_line(error: Exception) -> str:
    """What is said of an error that is none of ours."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
