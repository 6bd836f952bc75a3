"""Among how many processes of this machine one run, or its verification, is divided."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from saebench_recovery import registry
from saebench_recovery.base import named_code
from saebench_recovery.runs.processes import Environment, environments

FLIPS_EACH = 32  # that are worth a process: it imports and loads for longer than it takes for fewer
PROCESS_BYTES = 2**30  # of memory beside models and dictionaries: torch, transformers, activations


@dataclass(frozen=True)
class Sharing:
    """How many processes, and the plugin files that each of them imports.

    `jobs` None is as many as there is work, cores and memory for.
    """

    jobs: int | None = 1
    plugins: Sequence[str | Path] = ()

    def prepare(self) -> Callable[[], None]:
        """What a process is to do first, so that it knows what this one does."""
        return partial(_prepared, tuple(self.plugins), named_code.allowed())

    def divides(self, groups: int) -> bool:
        """Whether pieces of work that cannot be divided may go to more than this process."""
        return groups > 1 and self.jobs != 1

    def places(
        self, device: str, *, groups: int, flips: int, loaded_bytes: int
    ) -> list[Environment]:
        """What each process finds in its environment; empty where this process is enough.

        Args:
            device: "auto" for all devices of the machine or, where it has none, its cores.
            groups: pieces of work that cannot be divided.
            flips: in all of them, about.
            loaded_bytes: what a process loads, its share of `PROCESS_BYTES` aside.
        """
        if not self.divides(groups):
            return []
        count = self.jobs or min(
            len(environments(device, None)),
            flips // FLIPS_EACH,
            _memory() // 2 // (PROCESS_BYTES + loaded_bytes),
        )
        count = min(count, groups)
        return environments(device, count) if count > 1 else []


ALONE = Sharing()


def _prepared(plugins: Sequence[str | Path], allowed: frozenset[str]) -> None:
    for file in plugins:
        registry.load_plugin_file(file)
    for name in allowed:
        named_code.allow(name)


def _memory() -> int:
    """Bytes of the machine's memory; 0 where the system does not tell."""
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
