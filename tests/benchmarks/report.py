"""Print the tables of docs/speed.md: `python -m tests.benchmarks.report`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable

import torch

from tests.benchmarks.measure import Comparison, compare, engine_ms
from tests.benchmarks.setting import Workload, organism_is_built, organism_workload, random_workload

FLIPS = 16  # per step in the growth tables, where nothing else is said


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread\n")
    print("| workload | rows per step | plain, ms | engine, ms | ratio | with prefill, 50 steps |")
    print("|---|---|---|---|---|---|")
    print(line("random, 12 layers, 128 tokens", compare(random_workload())))
    if organism_is_built():
        print(line("organism, ioi", compare(organism_workload())))
    one = random_workload()
    grow("flips per step", (1, 2, 4, 8, 16, 32, 64), lambda n: one, flips=lambda n: n)
    grow("prompt tokens", (32, 64, 128, 256, 512), lambda n: random_workload(tokens=n))
    grow("defended latents", (8, 32, 128), lambda n: random_workload(latents=n))
    grow("dictionary width", (1024, 4096, 16384, 65536), lambda n: random_workload(width=n))


def line(name: str, found: Comparison) -> str:
    ratio = found.plain_ms / found.engine_ms
    # The prefill is paid once per row, and fifty steps are the default.
    whole = found.plain_ms / (found.engine_ms + found.prefill_ms / 50)
    figures = f"{found.plain_ms:.1f} | {found.engine_ms:.3f} | {ratio:.0f} | {whole:.0f}"
    return f"| {name} | {found.problem.size} | {figures} |"


def grow(
    name: str,
    sizes: Iterable[int],
    workload: Callable[[int], Workload],
    flips: Callable[[int], int] = lambda n: FLIPS,
) -> None:
    """A table of the engine's cost as one size grows."""
    print(f"\n| {name} | engine, ms per example-step |")
    print("|---|---|")
    for size in sizes:
        print(f"| {size} | {engine_ms(workload(size), flips(size)):.3f} |", flush=True)


if __name__ == "__main__":
    main()
