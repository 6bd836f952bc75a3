"""An SAE of another model or hook point is refused, unless the user says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.sae.host import Host, check_metadata
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import presets
from tests.layouts import write_model, write_sae

SITE = Site.parse("blocks.2.hook_resid_post")
TYPES = {
    "gpt2-small": "gpt2",
    "gemma-2-2b": "gemma2",
    "gemma-2-2b-it": "gemma2",
    "gemma-3-1b": "gemma3_text",
    "llama-3.1-8b": "llama",
}


def check(trained: Any, name: str | None, kind: str) -> None:
    check_metadata({"hook_name": str(SITE), "model_name": trained}, SITE, Host(name, kind))


@pytest.mark.parametrize(
    ("trained", "name", "kind"),
    [
        ("gpt2-small", "openai-community/gpt2", "gpt2"),
        ("gpt2-small", "gpt2", "gpt2"),
        ("gemma-2-2b", "google/gemma-2-2b-it", "gemma2"),
        ("google/gemma-3-270m", "google/gemma-3-270m-it", "gemma3_text"),
        ("gemma-3-270m-pt", "google/gemma-3-270m", "gemma3_text"),
        ("gemma-2b", "google/gemma-2b", "gemma"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", "gpt_neox"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B", "llama"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "llama"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1", "mistral"),
        ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B", "qwen3"),
        ("gpt2-small", None, "gpt2"),  # a folder
        ("gemma-2-2b", None, "gemma2"),
        ("organism", None, "gpt2"),
        (None, "google/gemma-2-2b", "gemma2"),
    ],
)
def test_the_same_model(trained: Any, name: str | None, kind: str) -> None:
    check(trained, name, kind)


@pytest.mark.parametrize(
    ("trained", "name", "kind"),
    [
        ("gpt2-small", "openai-community/gpt2-medium", "gpt2"),
        ("gemma-2-2b", "google/gemma-2-9b", "gemma2"),
        ("gemma-2b", "google/gemma-2-2b", "gemma2"),
        ("gemma-2-2b", "google/gemma-2b", "gemma"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m", "gpt_neox"),
        ("gemma-2-2b", None, "gemma3_text"),
        ("meta-llama/Llama-3.1-8B", None, "mistral"),
    ],
)
def test_another_model(trained: str, name: str | None, kind: str) -> None:
    with pytest.raises(UserError, match=f"trained on '{trained}', not on .*--force-sae"):
        check(trained, name, kind)


def test_no_false_alarm_for_the_presets() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    assert TYPES.keys() == presets().keys() - {"organism", "gemma-3-270m", "smollm2-135m-instruct"}
    for name, kind in TYPES.items():
        for place in presets()[name].saes.values():
            check(known[place.partition("/")[0]].model, presets()[name].model, kind)


def write_other(folder: Path, **metadata: str) -> Path:
    cfg = json.loads((write_sae(folder, str(SITE)) / "cfg.json").read_text())
    cfg["metadata"].update(metadata)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ({"model_name": "gemma-2-2b"}, "trained on 'gemma-2-2b', not on a gpt2 model; use one of"),
        ({"hook_name": "blocks.4.hook_resid_post"}, "trained at 'blocks.4.*, not at blocks.2"),
    ],
)
def test_force_overrides(tmp_path: Path, metadata: dict[str, str], line: str) -> None:
    model, sae = write_model(tmp_path / "model"), write_other(tmp_path / "sae", **metadata)
    name = f"{model}+{sae}@{SITE}"
    with pytest.raises(UserError, match=line):
        load_target(name, "cpu").dictionary(SITE)
    assert load_target(name, "cpu", force_sae=True).dictionary(SITE).site == SITE
