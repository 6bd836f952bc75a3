"""What the three kinds of plugins have in common, and the one place where their faults are caught.

Whatever a plugin's own method raises becomes one line that names the plugin, the method and the
fault. This holds wherever the method is called from, because it is the class that is guarded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import FrameType, FunctionType
from typing import Annotated, Any, ClassVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.files_read import calls_plugins

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

# What the harness asks of a plugin, as a method or a property; helpers of its own are not among it.
ASKED = frozenset(
    {
        *("fit", "intervene", "alarm", "false_alarms", "sees_only_latents", "latents", "scores"),
        *("examples", "attribution", "margins", "objective", "behaviour", "stopped"),
        *("fidelity", "base_like", "figures", "side_figures", "variants", "data_files"),
        *("positions", "insertion", "beginnings", "never_learned", "label", "pool", "new_tokens"),
        *("suite", "sites", "promise", "search", "shortest"),
        *("space", "constrained", "length", "abreast", "learns", "restores", "shortens"),
    }
)

SEARCHES = ("fit", "search", "shortest")  # methods of an attack


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
        if kind:  # an interface
            cls.kind = kind
        if "title" in vars(cls):  # messages have to be able to name it
            raise TypeError(f"{cls.__name__} has a title of its own; its name is what it has")
        for name in ASKED & vars(cls).keys():
            asked = vars(cls)[name]
            if isinstance(asked, FunctionType):
                setattr(cls, name, _guarded(name, asked))
            elif isinstance(asked, property) and asked.fget is not None:
                setattr(cls, name, asked.getter(_guarded(name, asked.fget)))

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.kind} {(self.name or type(self).__name__)!r}"


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """What is asked by that name, with whatever it raises turned into a `PluginError`.

    Bad input and an accelerator that is full are reported by others: they pass, bad input with the
    kind of the plugin, memory with a note of who ran out of it. An attack's search calls the
    defense and the task, which say so themselves.
    """

    @functools.wraps(method)
    def guarded(self: Plugin, *args: Any, **named: Any) -> Any:
        try:
            return method(self, *args, **named)
        except UserError as error:
            if self.kind != "attack" or not error.kind:
                error.kind = self.kind
            raise
        except KeyboardInterrupt:  # somebody stops the run
            raise
        except BaseException as error:
            if is_out_of_memory(error):
                if not getattr(error, "__notes__", ()):
                    error.add_note(f"{self.title}: {name}")
                raise
            raise PluginError(self.title, name, f"raised {one_line(error)}") from error

    calls_plugins(cast(FunctionType, guarded).__code__, _called)
    return guarded


def _called(frame: FrameType) -> str:
    """The module of the plugin whose method is guarded there.

    What an attack reads while it searches does not count: whoever verifies does not search.
    """
    plugin = frame.f_locals["self"]
    searches = plugin.kind == "attack" and frame.f_locals["name"] in SEARCHES
    return "" if searches else str(type(plugin).__module__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device is full, as torch says it; torch is not imported."""
    return type(error).__module__ == "torch" and _name(error) == "OutOfMemoryError"


def who_ran_out(error: BaseException) -> str:
    """The plugin and its method in which memory ran out, with a colon; empty where in none."""
    notes = getattr(error, "__notes__", ())
    return f"{notes[0]}: " if notes else ""


def one_line(error: BaseException) -> str:
    """What is said of an error that is none of ours."""
    name = _name(error)
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # it is a plugin's own and fails at this, too
        return name
    return " ".join(f"{name}: {text}".split())[:300]


def _name(error: BaseException) -> str:
    """Of its class, whatever a metaclass of the plugin's says."""
    name: str = type.__dict__["__name__"].__get__(type(error))
    return name
