"""saebench-recovery: was a behaviour removed from a language model, or only one route to it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saebench_recovery.registry import register_attack, register_defense, register_task
    from saebench_recovery.runs.check import check
    from saebench_recovery.runs.run import run
    from saebench_recovery.runs.verify.verify import verify

# In a clone `defenses`, `attacks` and `tasks` stand at the repository's root: a script there runs
# against the clone, whether or not anything is installed.
_clone = Path(__file__).resolve().parent.parent
if all((_clone / name / "__init__.py").is_file() for name in ("attacks", "defenses", "tasks")):
    __path__.append(str(_clone))

__version__ = "0.2.0"
__all__ = ["check", "register_attack", "register_defense", "register_task", "run", "verify"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import saebench_recovery` (and with it `saebench --help`) costs no torch.
    if name == "check":
        from saebench_recovery.runs.check import check

        return check
    if name == "run":
        from saebench_recovery.runs.run import run

        return run
    if name == "verify":
        from saebench_recovery.runs.verify.verify import verify

        return verify
    if name in __all__:
        from saebench_recovery import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
