"""SAEs trained on tiny models: what they load as and were trained on; killed ones go on."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.sae.files import load_dictionary
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import name_of_parts
from saebench_recovery.training import activations, memory, recipe, run, text, train, writing
from saebench_recovery.training.recipe import BATCH, Recipe
from tests.layouts import write_model
from tests.plain import plain_logits, plain_model
from tests.tiny import BOS, TinyTokenizer, shared_target, tiny_target

HOOK = "blocks.1.hook_resid_post"
SITE = Site.parse(HOOK)


def words(count: int) -> str:
    drawn = random.Random(0)
    return " ".join("".join(drawn.choices("abcdefgh", k=4)) for _ in range(count))


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Text of some 2600 tokens (characters) for the tiny models."""
    rows = [json.dumps({"text": words(2 + i % 30)}) for i in range(34)]
    (tmp_path / "text.jsonl").write_text("\n".join(rows) + "\n")
    return str(tmp_path / "text.jsonl")


def settings(source: str, **others: Any) -> Recipe:
    small = {"width": 48, "l0": 4, "tokens": 12 * BATCH}
    return Recipe(target="tiny", hook=HOOK, text=source, **{**small, **others})


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "BLOCK", 2 * BATCH)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)


@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "jumprelu"])
def test_what_is_trained_loads_in_saelens_and_reads_alike(
    architecture: str, source: str, tmp_path: Path
) -> None:
    from sae_lens import SAE

    target = shared_target("gemma3")
    run.train_at(target, SITE, settings(source, architecture=architecture), tmp_path / "sae")
    theirs = SAE.load_from_disk(tmp_path / "sae")
    ours = load_dictionary(tmp_path / "sae", SITE)
    assert ours.architecture == ("topk" if architecture == "topk" else "jumprelu")
    assert (theirs.cfg.metadata.hook_name, theirs.cfg.metadata.model_name) == (HOOK, "gemma3_text")
    assert (theirs.cfg.metadata.prepend_bos, theirs.cfg.metadata.context_size) == (True, 128)
    rows = text.rows(target, text.documents(source))
    resid_ND = torch.cat(list(activations.residuals(target, SITE, islice(rows, 8))))
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(resid_ND), theirs.encode(resid_ND))
    assert (ours.encode(resid_ND) > 0).any()
    assert {file.name for file in (tmp_path / "sae").iterdir()} == {
        run.RECIPE,
        "cfg.json",
        "sae_weights.safetensors",
    }


def test_training_explains_more_than_its_start(source: str, tmp_path: Path) -> None:
    target = shared_target("gpt2")
    explained = []
    for tokens in (12 * BATCH, 120 * BATCH):
        folder = tmp_path / str(tokens)
        run.train_at(target, SITE, settings(source, tokens=tokens), folder)
        made = load_dictionary(folder, SITE)
        rows = text.rows(target, text.documents(source))
        (resid_ND,) = [torch.cat(list(activations.residuals(target, SITE, rows)))]
        error = resid_ND - made.decode(made.encode(resid_ND), resid_ND)
        total = (resid_ND - resid_ND.mean(0)).square().sum()
        explained.append(1 - float(error.square().sum() / total))
    assert explained[1] > max(explained[0], 0.3)


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    architecture: str, source: str, tmp_path: Path
) -> None:
    target = shared_target("llama")
    plan = settings(source, architecture=architecture)
    run.train_at(target, SITE, plan, tmp_path / "whole")

    seen: list[int] = []

    def note(what: str, done: float, total: float) -> None:
        (step,) = re.findall(r"^training, step (\d+) of", what)
        seen.append(int(step))

    def kill(what: str, done: float, total: float) -> None:
        note(what, done, total)
        if seen[-1] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train_at(target, SITE, plan, tmp_path / "killed", kill)
    assert not (tmp_path / "killed" / "cfg.json").exists()
    run.train_at(target, SITE, plan, tmp_path / "killed", note)
    # Two batches a block: the sixth step was the last of a whole one.
    assert seen == [*range(1, 8), *range(7, 13)]
    whole, killed = (
        load_file(tmp_path / folder / "sae_weights.safetensors") for folder in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "gemma2"])
def test_residuals_are_the_models_without_bos_and_specials(architecture: str) -> None:
    target = shared_target(architecture)
    every = [(BOS, 5, 6, 0, 7), (BOS, 8, 9), (BOS, 11, BOS, 12, 13, 14)]
    found = torch.cat(list(activations.residuals(target, SITE, every)))
    expected: list[torch.Tensor] = []
    for row in sorted(every, key=len):
        content = [i for i, token in enumerate(row) if token > 2]

        def keep(resid: torch.Tensor, content: list[int] = content) -> torch.Tensor:
            expected.append(resid[0, content])
            return resid

        with torch.no_grad():
            plain_logits(plain_model(target.model), row, {SITE: keep})
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert len(found) == sum(text.content_count(target, row) for row in every) == 9


def test_held_out_documents_are_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {i}\nof two lines" for i in range(40)))
    (tmp_path / "b.jsonl").write_text("\n".join(f'{{"request": "ask {i}"}}' for i in range(20)))
    source = text.Source(str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"))
    kept, used = set(source.held_out()), {d for kind in source.trained_on() for d in kind()}
    assert (len(kept), len(used)) == (3 + 2, 37 + 18)
    assert {d for d in kept | used if isinstance(d, str)} == set(text.documents(source.text or ""))
    assert not kept & used


def test_rows_hold_a_document_each_and_one_bos() -> None:
    target = shared_target("gpt2")
    every = list(text.rows(target, ["a" * 100, "b"]))
    assert [len(row) for row in every] == [64, 38, 2]
    assert all(row.count(BOS) == 1 and row[0] == BOS for row in every)


def test_blocks_that_are_left_out_change_nothing_later(source: str) -> None:
    target = shared_target("gpt2")

    def blocks(skip: int) -> Iterator[torch.Tensor]:
        rows = text.endless_rows(target, text.Source(source), 1)
        return islice(activations.shuffled_blocks(target, SITE, rows, 600, 3, skip), 5 - skip)

    whole, late = list(blocks(0)), list(blocks(3))
    assert all(len(block) >= 600 for block in whole)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], late, strict=True))


def test_the_model_writes_the_text_and_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    target = shared_target("llama")
    writing.write_sampled(target, tmp_path / "whole.jsonl", 6000, 1)
    whole = (tmp_path / "whole.jsonl").read_text()
    every = text.rows(target, text.documents(str(tmp_path / "whole.jsonl")))
    assert sum(text.content_count(target, row) for row in every) >= 6000
    assert len(set(whole.splitlines())) > 32
    (tmp_path / "cut.jsonl").write_text(whole[: len(whole) * 3 // 4])
    writing.write_sampled(target, tmp_path / "cut.jsonl", 6000, 1)
    assert (tmp_path / "cut.jsonl").read_text() == whole


def test_from_text_to_a_target(tmp_path: Path) -> None:
    """What is trained on a folder's model is measured, and loads as that model's SAE."""
    model = str(write_model(tmp_path / "gemma-finetuned"))
    plan = Recipe(
        target=model, hook=HOOK, text=None, width=40, l0=4, tokens=10 * BATCH
    )  # fmt: skip
    found = run.train_on_target(plan, tmp_path / "sae", "cpu")
    assert (found.hook, found.width, found.architecture) == (HOOK, 40, "jumprelu")
    assert found.reconstruction.tokens > 64
    target = load_target(name_of_parts(model, [str(tmp_path / "sae")]), "cpu")
    assert target.dictionary(SITE).width == 40
    assert run.train_on_target(plan, tmp_path / "sae", "cpu") == found  # only measured again
    other = plan.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match="holds a training with other settings"):
        run.train_on_target(other, tmp_path / "sae", "cpu")
    with pytest.raises(UserError, match=r"is no empty folder and has no recipe\.json"):
        run.train_on_target(plan, tmp_path, "cpu")
    deep = plan.model_copy(update={"hook": "blocks.9.hook_resid_post"})
    with pytest.raises(
        UserError, match=r"has no blocks\.9\.hook_resid_post; its blocks are 0 to 5"
    ):
        run.train_on_target(deep, tmp_path / "deep", "cpu")


def test_too_little_text_or_memory_is_said_before_anything_is_trained(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = shared_target("gpt2")
    with pytest.raises(UserError, match=r"too short to train on: \d+ tokens .* the 5000 latents"):
        run.train_at(target, SITE, settings(source, width=5_000), tmp_path / "sae")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**7)
    with pytest.raises(UserError, match=r"needs about .* GB, and 0\.0 GB are free on cpu") as said:
        run.train_at(target, SITE, settings(source, width=6_000), tmp_path / "sae")
    fits = int(str(said.value).rpartition(" ")[2])
    memory.check_memory(settings(source, width=fits), 32, "cpu")
    with pytest.raises(UserError):
        memory.check_memory(settings(source, width=fits + 1), 32, "cpu")
    assert not (tmp_path / "sae").exists()


def test_a_model_without_a_first_token_needs_a_text(tmp_path: Path) -> None:
    target = tiny_target("llama")
    bare = TinyTokenizer(bos_token_id=None, eos_token_id=None)
    object.__setattr__(target, "tokenizer", bare)
    with pytest.raises(UserError, match="neither BOS nor EOS"):
        writing.write_sampled(target, tmp_path / "a.jsonl", 10, 0)
