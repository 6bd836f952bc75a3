"""Names of defenses, attacks and tasks: built in, from installed packages, or from a user's file.

Built-ins are "module:Class" placeholders and entry points are loaded on demand, so that listing
them imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from saebench_recovery.base import described
from saebench_recovery.base.catalogue import BUILT_IN, Kind
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.files_read import calls_plugins, listen
from saebench_recovery.base.plugin import PLUGIN_FILES, PluginError, one_line
from saebench_recovery.base.settings import nearest, validate
from saebench_recovery.base.task_file import ENDINGS, read_task_file

if TYPE_CHECKING:
    from saebench_recovery.interfaces import Attack, Defense, Plugin, Task

    D = TypeVar("D", bound=Defense)
    A = TypeVar("A", bound=Attack)
    T = TypeVar("T", bound=Task)

_registered: dict[Kind, dict[str, type[Plugin]]] = {"defense": {}, "attack": {}, "task": {}}
TABLE_TASK = "saebench_recovery.tasks._table"

_plugin_files: dict[str, Path] = {}  # by the name under which the module was imported
_of_others: frozenset[str] = frozenset()  # files and classes of others that came into the process


# --- registering ----------------------------------------------------------------------------


def register_defense(name: str) -> Callable[[type[D]], type[D]]:
    """Class decorator: make a `Defense` known under a name.

    Raises:
        UserError: the class is no `Defense`, lacks a method, or the name is taken.
    """
    return _registrar("defense", name)


def register_attack(name: str) -> Callable[[type[A]], type[A]]:
    """The same for an `Attack`."""
    return _registrar("attack", name)


def register_task(name: str) -> Callable[[type[T]], type[T]]:
    """The same for a `Task`."""
    return _registrar("task", name)


def _registrar(kind: Kind, name: str) -> Callable[[type[Any]], type[Any]]:
    def register(cls: type[Any]) -> type[Any]:
        _check_class(kind, cls)
        holder = _holder(kind, name)
        # The same class met again (a file loaded twice, a notebook cell run twice) replaces itself.
        if holder not in (None, _address(cls)):
            raise UserError(f"{kind} name {name!r} is taken by {holder}; choose another")
        cls.name = name
        if not _by_the_package(kind, name, cls):
            _note_others(_address(cls))
        _registered[kind][name] = cls
        return cls

    return register


def _by_the_package(kind: Kind, name: str, cls: type[Any]) -> bool:
    """Whether it is the built-in class: its module registers it, before it has its name there."""
    module = sys.modules.get(cls.__module__)
    ours = BUILT_IN[kind].get(name, ("",))[0] == _address(cls)
    return ours and module is not None and not hasattr(module, cls.__qualname__)


def _note_others(name: str) -> None:
    """Remember code of others; nothing that it changes of itself afterwards takes that back."""
    global _of_others
    listen()
    _of_others = frozenset((*_of_others, name))


def code_of_others() -> frozenset[str]:
    """Plugin files that were imported into this process, and classes that are not built in."""
    return _of_others


def _check_class(kind: Kind, cls: type[Any]) -> None:
    from saebench_recovery import interfaces

    base = getattr(interfaces, kind.capitalize())
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{cls!r} is not a subclass of {base.__name__}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise UserError(f"{kind} class {cls.__name__} does not implement {missing}")


def _address(cls: type[Any]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _holder(kind: Kind, name: str) -> str | None:
    if name in _registered[kind]:
        return _address(_registered[kind][name])
    if name in BUILT_IN[kind]:  # without a look at every installed package
        return BUILT_IN[kind][name][0]
    return _placeholders(kind).get(name, (None, ""))[0]


def load_plugin_file(path: str | Path) -> None:
    """Import a user's file, so that its decorators register what it defines.

    A task file in YAML is read, and its task registered.

    Raises:
        UserError: there is no such file, it does not import, or see `read_task_file`.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UserError(f"plugin file {str(path)!r} does not exist")
    # The module name depends on the whole path: two files called my_defense.py do not clash.
    name = f"{PLUGIN_FILES}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if file.suffix in ENDINGS:
        _load_task_file(Path(path), name)
        return
    listen()
    try:
        _import_file(path, file, name)
    finally:
        _note_others(str(file))  # after it ran, whatever it then did to this record
    _plugin_files[name] = file


def _import_file(path: str | Path, file: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"plugin file {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # As when Python runs a file: it may import what lies beside it. Last, so that it hides nothing.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        sys.modules.pop(name, None)  # the file may have removed itself
        raise UserError(f"plugin file {str(path)!r} does not import: {one_line(error)}") from error


def _load_task_file(file: Path, module: str) -> None:
    """Register the task of a task file, as if the file were the module of that name."""
    table = read_task_file(file)  # before torch is imported
    sys.modules[module] = made = ModuleType(module)
    made.__file__ = str(file.resolve())
    task = importlib.import_module(TABLE_TASK).task_of(table, module)
    _registrar("task", table.name)(task)
    _plugin_files[module] = file.resolve()


# --- looking up -----------------------------------------------------------------------------


def _placeholders(kind: Kind) -> dict[str, tuple[str, str]]:
    """Built-ins and entry points: name -> ("module:Class", description)."""
    found = importlib.metadata.entry_points(group=f"saebench_recovery.{kind}s")
    installed = {
        point.name: (point.value, f"from {point.dist.name if point.dist else point.module}")
        for point in found
    }
    return {**installed, **BUILT_IN[kind]}


def listing(kind: Kind) -> dict[str, str]:
    """Every known name with its one-line description, sorted; imports no plugin."""
    known = {name: description for name, (_, description) in _placeholders(kind).items()}
    for name, cls in _registered[kind].items():
        known.setdefault(name, (inspect.getdoc(cls) or "").partition("\n")[0])
    return dict(sorted(known.items()))


def check_name(kind: Kind, name: str) -> None:
    """Make sure that a name is known, without importing its class.

    Raises:
        UserError: it is not; the message proposes the nearest known one.
    """
    if _holder(kind, name) is None:
        raise UserError(f"unknown {kind} {name!r}; {nearest(name, listing(kind))}")


def plugin_class(kind: Kind, name: str) -> type[Plugin]:
    """The class of that name, imported now if it was not yet.

    Raises:
        UserError: no such name, or an installed plugin does not import.
    """
    check_name(kind, name)
    if name not in _registered[kind]:
        address = str(_holder(kind, name))
        module, _, attribute = address.partition(":")
        if not is_built_in(kind, name):
            listen()
        try:
            cls = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"{kind} {name!r} at {address} does not import: {error}") from error
        # Importing ran the decorator; an entry point may also name an undecorated class.
        if _registered[kind].get(name) is not cls:
            _registrar(kind, name)(cls)
    return _registered[kind][name]


def description(kind: Kind, name: str) -> dict[str, Any]:
    """What a plugin is and can be told; imports one only if it is not built in.

    Raises:
        UserError: see `plugin_class`.
    """
    check_name(kind, name)
    if is_built_in(kind, name):
        return described.built_in(kind, name)
    found = described.described(plugin_class(kind, name))
    return found | {"about": found["about"] or listing(kind)[name]}


def create(kind: Kind, name: str, settings: Mapping[str, Any]) -> Plugin:
    """A fresh plugin object with its validated configuration.

    Raises:
        UserError: unknown name, unknown key, or a value that does not fit.
    """
    cls = plugin_class(kind, name)
    config = validate(cls.Config, settings, f"{kind} {name!r}")
    try:
        return cls(config)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginError(f"{kind} {name!r}", "__init__", f"raised {one_line(error)}") from error


def registered_name(kind: Kind, plugin: str | type[Plugin]) -> str:
    """The name of a plugin that is given by its name or as a class.

    Raises:
        UserError: the class is not registered.
    """
    if isinstance(plugin, str):
        return plugin
    if _registered[kind].get(plugin.name) is not plugin:
        raise UserError(
            f"{plugin.__name__} is not registered; put @register_{kind}('a-name') above it"
        )
    return plugin.name


def plugin_file(plugin: type[Plugin]) -> Path | None:
    """The `--plugin` file in which the plugin's class stands, if it came from one."""
    return _plugin_files.get(plugin.__module__)


calls_plugins(_import_file.__code__, lambda frame: str(frame.f_locals["name"]))
calls_plugins(plugin_class.__code__, lambda frame: str(frame.f_locals.get("module", "")))
calls_plugins(create.__code__, lambda frame: str(frame.f_locals["cls"].__module__))


def is_built_in(kind: Kind, name: str) -> bool:
    """Whether the class of that name is part of this package."""
    return name in BUILT_IN[kind]
