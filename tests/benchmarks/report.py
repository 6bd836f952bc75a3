"""Print the tables of docs/speed.md: `python -m tests.benchmarks.report [--shape NAME]`."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence

import torch

from tests.benchmarks.floors import floors
from tests.benchmarks.measure import Comparison, compare, engine_ms
from tests.benchmarks.setting import Workload, organism_workload, random_workload
from tests.benchmarks.shapes import SHAPES, Shape

FLIPS = 16  # per step where prompts grow


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, help="a model of this size, and its floors")
    parser.add_argument("--device", default="cpu", help="where the model of that size is put")
    asked = parser.parse_args(arguments)
    if asked.shape is None:
        torch.set_num_threads(1)
    where = platform.machine() if asked.device == "cpu" else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {where}, threads: {torch.get_num_threads()}\n")
    if asked.shape is None:
        usual_tables()
    else:
        tables_of(asked.shape, SHAPES[asked.shape], asked.device)


def usual_tables() -> None:
    """The workloads that need no download."""
    one = random_workload()
    found = {
        "random, 12 layers, width 256, 128 tokens": compare(one),
        "organism, ioi": compare(organism_workload()),
    }
    _against_plain(found)
    flips = (1, 2, 4, 8, 16, 32, 64)
    _growth("flips per step", flips, [one] * len(flips), flips)
    tokens = (32, 64, 128, 256, 512)
    loads = [random_workload(tokens=n) for n in tokens]
    _growth("prompt tokens", tokens, loads, [FLIPS] * len(loads))


def tables_of(name: str, shape: Shape, device: str) -> None:
    """One model: both ways, the engine beside its floors, and growth with the dictionary."""
    model = shape.model(device)
    load = shape.workload(model)
    problem = load.problem(load.chosen)
    least = floors(problem)
    load.search(problem)
    peak = problem._engine.meter.cost().peak_bytes
    found = compare(load)
    _against_plain({f"{name}, {shape.tokens} tokens": found})
    print(f"\nThe deltas of both ways differ by {found.gap:.1e} of their norm.")
    if peak is not None:
        print(f"Peak memory of the engine: {peak / 1e9:.2f} GB.")
    step = found.engine_ms * problem.size
    weights = f"{least.weights_bytes / 1e9:.3g} GB of weights read twice"
    products = f"{least.flops / 1e9:.3g} GFLOP of matrix products"
    print(f"\n| one step on {problem.size} rows | ms | of the engine's time |")
    print("|---|---|---|")
    print(f"| engine | {step:.1f} | |")
    for what, rate, ms in (
        (weights, f"{least.bytes_per_s / 1e9:.0f} GB/s", least.weights_ms),
        (products, f"{least.flops_per_s / 1e9:.0f} GFLOP/s", least.products_ms),
    ):
        print(f"| {what} at {rate} | {ms:.1f} | {ms / step:.0%} |")
    for title, sizes, loads in (
        (
            f"defended latents of {max(shape.widths_grow)}",
            shape.latents_grow,
            [shape.workload(model, n, max(shape.widths_grow)) for n in shape.latents_grow],
        ),
        (
            f"dictionary width, {shape.latents} latents defended",
            shape.widths_grow,
            [shape.workload(model, width=n) for n in shape.widths_grow],
        ),
    ):
        _growth(title, sizes, loads, [load.chosen] * len(loads))


def _against_plain(found: dict[str, Comparison]) -> None:
    print("| workload | rows per step | plain, ms | engine, ms | ratio | with prefill, 50 steps |")
    print("|---|---|---|---|---|---|")
    for name, one in found.items():
        # The prefill is paid once per row, and fifty steps are the default.
        whole = one.plain_ms / (one.engine_ms + one.prefill_ms / 50)
        figures = f"{one.plain_ms:.1f} | {one.engine_ms:.3f} | {one.ratio:.0f} | {whole:.0f}"
        print(f"| {name} | {one.problem.size} | {figures} |", flush=True)


def _growth(
    title: str, sizes: Sequence[int], loads: Sequence[Workload], flips: Sequence[int]
) -> None:
    """A table of the engine's cost as one size grows."""
    print(f"\n| {title} | engine, ms per example-step | of the first |")
    print("|---|---|---|")
    every = engine_ms(loads, flips)
    for size, ms in zip(sizes, every, strict=True):
        print(f"| {size} | {ms:.3f} | {ms / every[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
