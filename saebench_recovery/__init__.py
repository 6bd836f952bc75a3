"""saebench-recovery: was a behaviour removed from a language model, or only one route to it?

`run` attacks a defense and scores what comes back; `check` says whether plugins of your own are
what a run takes them for. Of stored runs, `compare` sets several side by side, `load_runs` makes a
data frame, `verify` recomputes one by another engine, and `attribute` asks which part of its deltas
carries the recovery. `register_defense`, `register_attack` and `register_task` are decorators for
classes of your own, whose bases stand in `saebench_recovery.interfaces`.

Example:
    >>> from saebench_recovery import run
    >>> result = run(defense="clamp", attack="orthogonal", tasks=["ioi"], limit=32)
    >>> [(row.task, row.recovery.rate) for row in result.rows]
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saebench_recovery.registry import register_attack, register_defense, register_task
    from saebench_recovery.results.compare import compare
    from saebench_recovery.results.frame import load_runs
    from saebench_recovery.runs.attribute.attribute import attribute
    from saebench_recovery.runs.check import check
    from saebench_recovery.runs.run import run
    from saebench_recovery.runs.verify.verify import verify

# In a clone `defenses`, `attacks` and `tasks` stand at the repository's root: a script there runs
# against the clone, whether or not anything is installed.
_clone = Path(__file__).resolve().parent.parent
if all((_clone / name / "__init__.py").is_file() for name in ("attacks", "defenses", "tasks")):
    __path__.append(str(_clone))

__version__ = "0.2.0"
__all__ = [
    "attribute",
    "check",
    "compare",
    "load_runs",
    "register_attack",
    "register_defense",
    "register_task",
    "run",
    "verify",
]

_MODULES = {
    "attribute": "runs.attribute.attribute",
    "check": "runs.check",
    "compare": "results.compare",
    "load_runs": "results.frame",
    "register_attack": "registry",
    "register_defense": "registry",
    "register_task": "registry",
    "run": "runs.run",
    "verify": "runs.verify.verify",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import saebench_recovery` (and with it `saebench --help`) costs no torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f"{__name__}.results.report.notebook")  # what these return is shown as tables
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # so that `help` and completion see them
