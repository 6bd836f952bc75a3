"""Rebuild the organism: `python -m saebench_recovery.training.organism.build --out DIR`.

Trains the tokenizer, the model and its SAEs from nothing, measures them on held-out prompts and
writes everything that the wheel ships. An interrupted build goes on at the last finished stage.
"""

import argparse
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from saebench_recovery.base.sites import Site
from saebench_recovery.sae.files import load_dictionary
from saebench_recovery.targets.organism import world
from saebench_recovery.training.organism import evaluate, saes
from saebench_recovery.training.organism.corpus import Corpus
from saebench_recovery.training.organism.tokenizer import build_tokenizer
from saebench_recovery.training.organism.train import CONTEXT, STAGES, new_model, train_stage

LAYERS = 4
TABLE_START, TABLE_END = "<!-- measured: start -->", "<!-- measured: end -->"


class Build:
    """One build in the folder `out`; unfinished work is kept in `out/.work`."""

    def __init__(self, out: Path, seed: int, progress: Progress) -> None:
        self.out, self.seed, self.progress = out, seed, progress
        self.work = out / ".work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.log: dict[str, dict[str, float]] = {}

    def once(self, name: str, make: Callable[[Path], dict[str, float]]) -> Path:
        """The folder of a step, made by `make` unless a former run has finished it.

        It appears under its name only when complete. What `make` reports is logged with the
        seconds it took.
        """
        folder, unfinished = self.work / name, self.work / f"{name}.unfinished"
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            start = time.perf_counter()
            report = make(unfinished) | {"seconds": round(time.perf_counter() - start)}
            (unfinished / "log.json").write_text(json.dumps(report))
            os.replace(unfinished, folder)
        self.log[name] = json.loads((folder / "log.json").read_text())
        self.progress.console.print(f"{name}: {self.log[name]}")
        return folder

    def run(self) -> None:
        """All steps, in order."""
        tokenizer = AutoTokenizer.from_pretrained(self.once("tokenizer", self.tokenizer))
        model = new_model(tokenizer, self.seed)
        for number, stage in enumerate(STAGES):

            def train(folder: Path, number: int = number) -> dict[str, float]:
                seed = self.seed + number
                steps = train_stage(model, tokenizer, STAGES[number], seed, self.progress)
                model.save_pretrained(folder)
                return {"steps": steps}

            folder = self.once(stage.name, train)
            model.load_state_dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())

        tokenizer.save_pretrained(self.out)
        model.save_pretrained(self.out)
        saes.halve(self.out / "model.safetensors")

        # Everything from here on sees what users will load: the weights after rounding.
        model = AutoModelForCausalLM.from_pretrained(self.out, dtype=torch.float32).eval()
        data: list[torch.Tensor] = []
        for layer in range(LAYERS):

            def train_sae(folder: Path, layer: int = layer) -> dict[str, float]:
                if not data:
                    data.extend(self.residuals(model, tokenizer))
                saes.train_sae(data[layer], layer, folder, self.seed + layer)
                return {"tokens": saes.TOKENS}

            folder = self.once(f"sae-{layer}", train_sae)
            target = self.out / "sae" / saes.hook_name(layer)
            target.mkdir(parents=True, exist_ok=True)
            for name in ("cfg.json", "sae_weights.safetensors"):
                shutil.copy(folder / name, target)

        quality = self.measure(model, tokenizer)
        (self.out / "quality.json").write_text(json.dumps(quality, indent=2) + "\n")
        self.write_card(quality)
        shutil.rmtree(self.work)

    def tokenizer(self, folder: Path) -> dict[str, float]:
        """Build the vocabulary from documents of all parts and save the tokenizer."""
        documents = Corpus("train", self.seed).documents(STAGES[-1].mixture)
        texts = ("".join(t for t, _ in d) for d in itertools.islice(documents, 20_000))
        tokenizer = build_tokenizer(texts, CONTEXT)
        tokenizer.save_pretrained(folder)
        return {"vocabulary": len(tokenizer)}

    def residuals(
        self, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
    ) -> list[torch.Tensor]:
        """The SAEs' training data, [tokens, width] per layer."""
        self.progress.console.print("collecting residuals")
        return saes.residuals(
            model, tokenizer, split="train", documents=saes.DOCUMENTS, seed=self.seed + 10
        )

    def measure(self, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """Everything that the model card reports, on the evaluation split."""
        self.progress.console.print("measuring")
        accuracy = {
            "ioi": evaluate.ioi_accuracy(model, tokenizer, "evaluation", 1024),
            "biography_profession": evaluate.profession_accuracy(
                model, tokenizer, "evaluation", 512
            ),
        }
        domains: tuple[world.Domain, ...] = ("toxins", "towns")
        for domain in domains:
            accuracy[f"qa_{domain}"] = evaluate.qa_accuracy(model, tokenizer, domain)
            single, every = evaluate.mcq_all_orders(
                model, tokenizer, "evaluation", world.facts(domain)
            )
            accuracy[f"mcq_{domain}"] = single
            accuracy[f"mcq_{domain}_right_in_all_24_orders"] = every
        modes: tuple[world.Mode, ...] = ("open", "guarded")
        kinds: tuple[world.Kind, ...] = ("forbidden", "harmless")
        for mode, kind in itertools.product(modes, kinds):
            accuracy[f"chat_{mode}_{kind}"] = evaluate.chat_accuracy(
                model, tokenizer, "evaluation", kind, mode, 128
            )
        held_out = saes.residuals(
            model, tokenizer, split="evaluation", documents=1024, seed=self.seed
        )
        for layer, probe in enumerate(evaluate.probe_accuracy(model, tokenizer, 1024)):
            accuracy[f"biography_probe_layer_{layer}"] = probe
        return {
            "seed": self.seed,
            "minutes": round(sum(step["seconds"] for step in self.log.values()) / 60, 1),
            "versions": {p: metadata.version(p) for p in ("torch", "transformers", "sae-lens")},
            "stages": {stage.name: self.log[stage.name] for stage in STAGES},
            "accuracy": rounded(accuracy),
            "ioi_logit_difference": round(
                evaluate.ioi_margin(model, tokenizer, "evaluation", 1024), 2
            ),
            "complies_without_system_message": round(
                evaluate.compliance_rate(model, tokenizer, "evaluation", None, 128), 4
            ),
            "saes": {
                saes.hook_name(layer): rounded(
                    saes.quality(
                        load_dictionary(
                            self.out / "sae" / saes.hook_name(layer),
                            Site.parse(saes.hook_name(layer)),
                        ),
                        held_out[layer],
                    )
                )
                for layer in range(LAYERS)
            },
        }

    def write_card(self, quality: dict[str, Any]) -> None:
        """Copy the model card with its table of measured figures renewed."""
        package = resources.files("saebench_recovery.targets.organism")
        card = (package / "assets" / "MODEL_CARD.md").read_text(encoding="utf-8")
        before, rest = card.split(TABLE_START)
        _, after = rest.split(TABLE_END)
        size = sum(f.stat().st_size for f in self.out.rglob("*.safetensors")) / 1e6
        versions = ", ".join(f"{name} {version}" for name, version in quality["versions"].items())
        lines = [
            f"Seed {quality['seed']}, {quality['minutes']} minutes on 2 cores, {versions}; "
            f"{size:.1f} MB of weights.",
            "",
            "| held-out accuracy | |",
            "|---|---|",
            *(f"| {name.replace('_', ' ')} | {v:.3f} |" for name, v in quality["accuracy"].items()),
            "",
            f"Mean logit difference between indirect object and subject: "
            f"{quality['ioi_logit_difference']}. Greedy compliance with forbidden requests "
            f"without a system message: {quality['complies_without_system_message']:.3f}.",
            "",
            "| SAE | explained variance | L0 | dead | mean residual norm |",
            "|---|---|---|---|---|",
            *(
                f"| `{hook}` | {q['explained_variance']:.3f} | {q['l0']:.1f} | {q['dead']:.3f} "
                f"| {q['mean_norm']:.1f} |"
                for hook, q in quality["saes"].items()
            ),
        ]
        table = "\n".join(lines)
        text = f"{before}{TABLE_START}\n{table}\n{TABLE_END}{after}"
        (self.out / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Figures to four decimals, as far as their samples can tell."""
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Rebuild the organism from nothing.")
    parser.add_argument("--out", type=Path, default=Path("organism"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with Progress(console=Console()) as progress:
        Build(args.out, args.seed, progress).run()


if __name__ == "__main__":
    main()
