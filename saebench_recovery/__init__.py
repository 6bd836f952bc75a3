"""saebench-recovery: was a behaviour removed from a language model, or only one route to it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saebench_recovery.registry import register_attack, register_defense, register_task
    from saebench_recovery.runs.run import run

__version__ = "0.1.0"
__all__ = ["register_attack", "register_defense", "register_task", "run"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import saebench_recovery` (and with it `saebench --help`) costs no torch.
    if name == "run":
        from saebench_recovery.runs.run import run

        return run
    if name in __all__:
        from saebench_recovery import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
