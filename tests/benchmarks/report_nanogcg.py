"""Print what `gcg` costs beside nanoGCG 0.3: `python -m tests.benchmarks.report_nanogcg FOLDER`.

nanoGCG needs an older transformers, so FOLDER becomes an environment of its own, with its own
download, unless it is one already. Both attack one prompt of the random 12-layer model of these
benchmarks on the cross-entropy of an answer, from the same suffix; CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from saebench_recovery.attacks import gcg
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.interfaces import Output
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.replacements import noted
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.setting import Flip, Setting
from tests.benchmarks.plain_gcg import words
from tests.benchmarks.setting import Workload, random_workload
from tests.tiny import TinyTask

NEEDS = ("nanogcg==0.3.0", f"torch=={torch.__version__.partition('+')[0]}")
ANSWER, LENGTH, TOPK = 4, 8, 64  # tokens of the answer and of the suffix; drawn from
STEPS = {32: 40, 128: 20, 512: 10}  # of nanoGCG, by the candidates that it tries in each
OURS: dict[str, dict[str, int]] = {
    "one coordinate": {"coordinates": 1, "buffer": 1},
    "several at first": {"coordinates": 4, "buffer": 4},
}
OUR_CANDIDATES = (16, 32)
MOST = 60  # steps of ours
LATENTS = 32
NEAR = 0.9  # of what nanoGCG gains in all its steps


class Answering(TinyTask):
    """Minus the cross-entropy of the whole answer."""

    def objective(self, output: Output) -> Tensor:
        return output.scores_EC[:, 0]


@dataclass(frozen=True)
class Descent:
    """The lowest loss after each step of a search, and the CPU seconds of a step."""

    losses: Sequence[float]
    step_s: float

    def seconds_to(self, loss: float) -> float | None:
        """What it took to come down to a loss; None where it never did."""
        steps = [i for i, found in enumerate(self.losses, 1) if found <= loss]
        return steps[0] * self.step_s if steps else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="nanoGCG's environment, made if it is not there")
    python = environment(parser.parse_args().folder)
    torch.set_num_threads(1)
    load = answering()
    theirs = by_nanogcg(python, load)
    print("| candidates a step | nanoGCG, s a step | gcg, s a step | ratio |\n|---|---|---|---|")
    for count, their in theirs.items():
        own = by_gcg(load, candidates=count, steps=3, **OURS["one coordinate"])
        ratio = their.step_s / own.step_s
        print(f"| {count} | {their.step_s:.3f} | {own.step_s:.3f} | {ratio:.1f} |", flush=True)
    first = max(d.losses[0] for d in theirs.values())
    loss = first - NEAR * (first - min(d.losses[-1] for d in theirs.values()))
    fastest = min(filter(None, (d.seconds_to(loss) for d in theirs.values())))
    print(f"\nA loss of {loss:.2f}, which nanoGCG reaches in {fastest:.2f} s:\n")
    print("| gcg | candidates a step | s | ratio |\n|---|---|---|---|")
    for name, how in OURS.items():
        for count in OUR_CANDIDATES:
            took = by_gcg(load, candidates=count, steps=MOST, **how).seconds_to(loss)
            shown = "not reached | " if took is None else f"{took:.2f} | {fastest / took:.1f}"
            print(f"| {name} | {count} | {shown} |", flush=True)


def environment(folder: Path) -> Path:
    """The interpreter of an environment that has nanoGCG."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
    return python


def answering() -> Workload:
    """One prompt of the random model, and an answer of several tokens; the clamp changes nothing.

    nanoGCG knows no defense, and ours runs under one always.
    """
    load = random_workload(flips=1, latents=LATENTS)
    setting, (flip,) = load.setting, load.flips
    drawn = torch.Generator().manual_seed(0)
    answer = tuple(torch.randint(3, 50_000, (ANSWER,), generator=drawn).tolist())
    example = flip.example.with_candidates(answer)
    defense = Clamp(Clamp.Config(latents=LATENTS, multiplier=1))
    defense.latents = setting.defense.latents
    target = replace(setting.target, tokenizer=words(setting.target.embedding.weight.shape[0]))
    changed = replace(setting, target=target, task=Answering(), defense=defense)
    return Workload(changed, [Flip(example, float("inf"), 0, example)])


def attacked(load: Workload, **config: int) -> tuple[Setting, Problem]:
    """The setting with our attack, and the problem of giving the right answer alone."""
    made = gcg.GreedyCoordinateGradient.Config(length=LENGTH, topk=TOPK, **config)
    setting = replace(load.setting, attack=gcg.GreedyCoordinateGradient(made))
    return setting, posed(setting, load.flips, Meter()).rows(torch.arange(1))


def by_gcg(load: Workload, **config: int) -> Descent:
    setting, problem = attacked(load, **config)
    with stepping() as losses:
        started = time.process_time()
        setting.attack.search(problem)
        seconds = time.process_time() - started
    return Descent(_lowest(losses), seconds / len(losses))


@contextmanager
def stepping() -> Iterator[list[float]]:
    """The loss of the suffix that each step of `gcg` keeps."""
    losses: list[float] = []

    def recorded(problem: Problem, objective_N: Tensor) -> None:
        losses.append(-float(objective_N[0]))
        noted(problem, objective_N)

    with patch.object(gcg, "noted", recorded):
        yield losses


def by_nanogcg(python: Path, load: Workload) -> dict[int, Descent]:
    """nanoGCG on the same model, prompt, answer and first suffix, by candidates a step."""
    target, (flip,) = load.setting.target, load.flips
    model: Any = target.model
    token = SuffixTokens.of(attacked(load)[1]).layout.token
    decode = target.tokenizer.decode
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        target.tokenizer.backend_tokenizer.save(f"{folder}/tokenizer.json")
        task = {
            "prompt": decode(flip.example.prompt[1:]) + " {optim_str}",
            "answer": decode(flip.example.candidates[0]),
            "suffix": decode([token] * LENGTH),
            "topk": TOPK,
            "searches": [{"search_width": c, "num_steps": steps} for c, steps in STEPS.items()],
        }
        (Path(folder) / "task.json").write_text(json.dumps(task))
        worker = Path(__file__).with_name("nanogcg_worker.py")
        command = [str(python), str(worker), folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    made = [Descent(_lowest(f["losses"]), f["seconds"] / len(f["losses"])) for f in found]
    return dict(zip(STEPS, made, strict=True))


def _lowest(losses: Sequence[float]) -> list[float]:
    return [min(losses[: i + 1]) for i in range(len(losses))]


if __name__ == "__main__":
    main()
