"""Files that plugins read beside their code: nothing in a run's identity says what they hold.

Python tells every opening of a file. It is a plugin's where the harness has called the plugin and
nothing else of the harness stands between; what the harness reads for it is in other hashes. Files
that a library opens outside of Python (weights in safetensors) are not told.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import FrameType

PACKAGE = __name__.partition(".")[0]
BASE = __name__.rpartition(".")[0]  # it reads for whoever asks, and stands between nobody
CODE = frozenset((".py", ".pyc", ".pyi", ".so", ".pyd", ".dll"))  # see `runs.sources`
INSTALLED = frozenset(("site-packages", "dist-packages"))
ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
EMPTIES = os.O_EXCL | os.O_TRUNC  # nothing stands there that could be read
SYSTEM = ("/proc", "/dev", "/sys", "/etc")

Reader = Callable[[FrameType], str]
"""The module of the plugin that is called in a frame of the harness; empty where none counts."""

_callers: dict[object, Reader] = {}
_read: dict[str, set[str]] = {}  # by the module of the plugin
_listening: list[bool] = []


def calls_plugins(code: object, reader: Reader) -> None:
    """Name a function of the harness that calls plugins, by its code."""
    _callers[code] = reader


def listen() -> None:
    """Take note from now on; a process that runs the package's own plugins alone need not."""
    if not _listening:
        _listening.append(True)
        sys.addaudithook(_told)


def files_read(modules: Iterable[str]) -> frozenset[str]:
    """Paths of what plugins of these modules have read so far, without their code."""
    return frozenset(path for module in modules for path in _read.get(module, ()))


def _told(event: str, args: tuple[object, ...]) -> None:
    if event != "open":
        return
    path, _, flags = args
    if not isinstance(path, str | bytes) or not isinstance(flags, int):  # it is open already
        return
    if flags & ACCESS == os.O_WRONLY or flags & EMPTIES:
        return
    module = _who(sys._getframe(1))
    if module and (place := os.path.abspath(os.fsdecode(path))) and _counts(place):
        _read.setdefault(module, set()).add(place)


def _who(frame: FrameType | None) -> str:
    """The module of the plugin that is at work; empty where the harness itself is."""
    while frame is not None:
        if frame.f_code in _callers:
            return _callers[frame.f_code](frame)
        name = str(frame.f_globals.get("__name__"))
        if (name == PACKAGE or name.startswith(f"{PACKAGE}.")) and not name.startswith(BASE):
            return ""
        frame = frame.f_back
    return ""


def _counts(place: str) -> bool:
    """Whether it is there, and neither code, nor installed, nor what a model's library keeps."""
    file = Path(place)
    known = file.suffix in CODE or INSTALLED & set(file.parts)
    return not known and not place.startswith(_elsewhere()) and file.is_file()


@cache
def _elsewhere() -> tuple[str, ...]:
    """Folders of the system, of Python and its packages, and of what was downloaded."""
    home = Path.home()
    kept = [os.environ.get("HF_HOME"), os.environ.get("XDG_CACHE_HOME"), home / ".cache"]
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    places = [*SYSTEM, *libraries, *(str(place) for place in kept if place)]
    return tuple(os.path.join(os.path.abspath(place), "") for place in places)
