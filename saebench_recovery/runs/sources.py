"""The code of a user's own plugin: its file, and every module of the user's that it imports.

What a plugin names as its data files counts as well, and a task file stands for its task's code.

Modules of this package are in the harness's hash, and those of installed distributions stand for
themselves.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.hashing import hash_file, hash_text
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.runs.fingerprint import package_folders

_INSTALLED = {"site-packages", "dist-packages"}
# What may name a module or its file in a string, as importlib is given it.
_NAME = re.compile(r"(?!__)[\w-]{1,100}(?:[./][\w-]{1,100}){0,8}")


def source_hash(plugin: type[Any]) -> str:
    """Hash of the source behind a plugin's class; an edit to any of it changes it.

    Raises:
        UserError: the source cannot be read, so results could not be told from older ones.
    """
    found: list[str] = []
    pending: list[Path] = []
    for cls in plugin.__mro__:
        file = _file_of(cls.__module__)
        if file is not None and (cls is plugin or _is_users(file)):
            pending.append(file)
        elif file is None and cls.__module__ not in sys.stdlib_module_names:
            found.append(f"{cls.__qualname__} {hash_text(_cell(cls))}")
    root = pending[0].parent if pending else Path()
    # A plugin that is installed brings the other modules of its own package along.
    own = root if (root / "__init__.py").is_file() else None
    seen = {file.resolve() for file in plugin.data_files}
    while pending:
        file = pending.pop()
        if file not in seen:
            seen.add(file)
            if file.suffix != ".py":
                continue
            pending += [f for f in _imported(file) if _is_users(f) or own in f.parents]
    for file in seen:
        name = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
        found.append(f"{name.as_posix()} {hash_file(file)}")
    return hash_text(canonical_json(sorted(found)))


def _cell(cls: type[Any]) -> str:
    """The source of a class that stands in no file, as in a notebook's cell."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        raise UserError(
            f"the source of {cls.__name__} cannot be read, so its results could not be told from "
            "those of another version; put the class into a file"
        ) from None


def _file_of(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file is not None and Path(file).is_file() else None


def _is_users(file: Path) -> bool:
    """Whether it is neither ours, nor Python's, nor of an installed distribution."""
    installed = _INSTALLED & set(file.parts)
    return file.suffix == ".py" and not installed and not any(f in file.parents for f in _known())


@cache
def _known() -> tuple[Path, ...]:
    """Folders of Python's own library and of this package."""
    library = Path(sysconfig.get_path("stdlib"))
    return tuple(folder.resolve() for folder in (library, *package_folders().values()))


def _imported(file: Path) -> Iterator[Path]:
    """Files of the modules that a file names or that its module holds something of."""
    for folder, name in _named(file):
        # A name of the user's may stand for a module from elsewhere on the path.
        if (known := _file_of(name)) is not None:
            yield known
        place = folder / (name if name.endswith(".py") else name.replace(".", "/"))
        for candidate in (place, place.with_suffix(".py"), place / "__init__.py"):
            if candidate.suffix == ".py" and candidate.is_file():
                yield candidate.resolve()
    for module in [m for m in sys.modules.values() if _is_from(m, file)]:
        for value in list(vars(module).values()):
            module_of = "__name__" if isinstance(value, ModuleType) else "__module__"
            holder = getattr(value, module_of, None)
            if isinstance(holder, str) and (known := _file_of(holder)) is not None:
                yield known


def _is_from(module: ModuleType | None, file: Path) -> bool:
    found = getattr(module, "__file__", None)
    return (
        isinstance(found, str) and Path(found).name == file.name and Path(found).resolve() == file
    )


def _named(file: Path) -> Iterator[tuple[Path, str]]:
    """Names of modules in a file's imports and strings, and the folder that each starts from."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((file.parent, name) for name in _prefixes(alias.name))
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[max(node.level - 1, 0)]
            module = node.module or ""
            names = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
            yield from ((start, name) for whole in names for name in _prefixes(whole))
        elif isinstance(node, ast.Constant) and _NAME.fullmatch(str(node.value)):
            yield file.parent, str(node.value)


def _prefixes(name: str) -> list[str]:
    """`a.b.c` imports `a` and `a.b` too."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
