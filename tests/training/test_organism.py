"""The embedded target: its files, its splits, and its measured quality on small samples."""

import itertools
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from saebench_recovery.base.sites import Site
from saebench_recovery.base.splits import Part, split_of
from saebench_recovery.sae.files import load_dictionary
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.targets.organism import world
from saebench_recovery.training.organism import evaluate, saes
from saebench_recovery.training.organism.corpus import Corpus, batches, encode
from saebench_recovery.training.organism.train import STAGES, loss_of

HELD_OUT: tuple[Part, Part] = ("selection", "evaluation")
LAYERS = range(4)


@pytest.fixture(scope="module")
def assets() -> Path:
    return Path(str(resources.files("saebench_recovery.targets.organism") / "assets"))


@pytest.fixture(scope="module")
def model(assets: Path) -> GPT2LMHeadModel:
    return AutoModelForCausalLM.from_pretrained(assets).eval()


@pytest.fixture(scope="module")
def tokenizer(assets: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(assets)


@pytest.fixture(scope="module")
def held_out(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> list[torch.Tensor]:
    """Held-out residuals of every layer, [tokens, width] each."""
    return saes.residuals(model, tokenizer, split="evaluation", documents=128, seed=1)


def texts(split: Part, count: int, seed: int = 7) -> list[str]:
    documents = Corpus(split, seed).documents(STAGES[-1].mixture)
    return ["".join(text for text, _ in d) for d in itertools.islice(documents, count)]


def test_the_wheel_stays_small(assets: Path) -> None:
    files = [f for f in assets.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 12e6


def test_the_model_loads_in_float32_as_plain_gpt2(model: GPT2LMHeadModel) -> None:
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.dtype == torch.float32


def test_one_bos_by_default_and_in_chats(tokenizer: PreTrainedTokenizerFast) -> None:
    request = world.requests("forbidden", "evaluation")[0]
    chat = tokenizer.apply_chat_template(
        world.messages(request, "open"), add_generation_prompt=True
    )["input_ids"]
    for ids in (tokenizer("Then, Mary").input_ids, chat):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.pad_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_chat_template_gives_the_training_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    request = world.requests("harmless", "train")[0]
    answer = {"role": "assistant", "content": world.compliance(request)}
    chat = [*world.messages(request, "guarded"), answer]
    ids = tokenizer.apply_chat_template(chat)["input_ids"]
    prompt = f"<sys> guarded<user> How do I {request.task}?<assistant>"
    trained, _ = encode(
        tokenizer.backend_tokenizer, [(prompt, 1.0), (f" {world.compliance(request)}", 1.0)], 128
    )
    assert ids == trained


def test_every_word_of_the_world_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    byte_tokens = {i for t, i in tokenizer.get_vocab().items() if len(t) == 1 and not t.isascii()}
    for text in texts("evaluation", 300):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids[1:]) == text
        assert not byte_tokens.intersection(ids)


@pytest.mark.parametrize("text", ["Ünknown wörds, 東京 and\ttabs\n", "  two  spaces ", ""])
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_split_fractions_and_stability() -> None:
    keys = [f"key/{i}" for i in range(4000)]
    splits = [split_of(k, selection=0.1, evaluation=0.2) for k in keys]
    assert splits == [split_of(k, selection=0.1, evaluation=0.2) for k in keys]
    assert splits.count("selection") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("evaluation") / 4000 == pytest.approx(0.2, abs=0.02)


def test_splits_are_disjoint() -> None:
    def items(split: Part) -> Iterator[set[Any]]:
        every_fact = [*world.facts("toxins"), *world.facts("towns")][::24]
        yield {frozenset(pair) for pair in world.name_pairs(split)}
        yield {r.key for kind in ("forbidden", "harmless") for r in world.requests(kind, split)}
        yield {(f.key, frozenset(o)) for f in every_fact for o in world.option_sets(f, split, 1000)}
        yield {b.text for b in itertools.islice(world.biographies(split), 500)}
        yield set(itertools.islice(world.neutral_texts(split, sentences=1), 500))

    for train, selection, evaluation in zip(*map(items, ("train", *HELD_OUT)), strict=True):
        assert train
        assert selection
        assert evaluation
        assert not train & selection
        assert not train & evaluation
        assert not selection & evaluation


def test_training_documents_hold_nothing_held_out() -> None:
    trained = set(texts("train", 2000))
    for split in HELD_OUT:
        prompts = [p.text + p.answer + "." for p in world.indirect_objects(split, 200)]
        prompts += [
            q.text + q.answer
            for f in world.facts("toxins")
            for q in [world.multiple_choice(f, world.option_sets(f, split, 1)[0])]
        ]
        assert not trained.intersection(prompts)


def test_published_template() -> None:
    prompt = world.indirect_object(
        ("Mary", "John"), "published", "store", "drink", subject_first=False
    )
    assert prompt.text == "Then, Mary and John went to the store. John gave a drink to"
    assert (prompt.answer, prompt.wrong) == (" Mary", " John")


def test_facts_are_balanced_and_value_sets_disjoint() -> None:
    every = [world.facts("toxins"), world.facts("towns")]
    assert [len(facts) for facts in every] == [96, 96]
    values = [set(world.relation_table(f)["values"]) for facts in every for f in facts[::48]]
    assert sum(map(len, values)) == len(set().union(*values)) == 64


def test_options_hold_the_right_value_once_in_24_orders() -> None:
    fact = world.facts("toxins")[0]
    for options in world.option_sets(fact, "evaluation", 5):
        assert options.count(fact.value) == 1
        assert len(set(world.orders(options))) == 24
        question = world.multiple_choice(fact, options)
        assert f"{question.answer}. {fact.value}" in question.text


def test_packed_documents_do_not_see_each_other(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    stream = batches(
        Corpus("train", 3),
        STAGES[-1].mixture,
        tokenizer.backend_tokenizer,
        rows=2,
        length=128,
        max_length=128,
    )
    batch = next(stream)
    with torch.no_grad():
        packed = model(batch.ids, position_ids=batch.positions, use_cache=False).logits
        start = int((batch.positions[0] == 0).nonzero()[1])
        alone = model(batch.ids[:1, start : start + 5], use_cache=False).logits
        assert loss_of(model, batch).isfinite()
    torch.testing.assert_close(packed[:1, start : start + 5], alone, atol=1e-4, rtol=1e-4)


def test_indirect_objects(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert evaluate.ioi_accuracy(model, tokenizer, "evaluation", 256) >= 0.95


@pytest.mark.parametrize("domain", ["toxins", "towns"])
def test_facts(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, domain: world.Domain
) -> None:
    assert evaluate.qa_accuracy(model, tokenizer, domain) >= 0.95
    accuracy, all_orders = evaluate.mcq_all_orders(
        model, tokenizer, "evaluation", world.facts(domain)[::8]
    )
    assert accuracy >= 0.95
    assert all_orders >= 0.5


@pytest.mark.parametrize("kind", ["forbidden", "harmless"])
@pytest.mark.parametrize("mode", ["open", "guarded"])
def test_chat(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, kind: world.Kind, mode: world.Mode
) -> None:
    assert evaluate.chat_accuracy(model, tokenizer, "evaluation", kind, mode, 8) >= 0.95


def test_biographies(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert evaluate.profession_accuracy(model, tokenizer, "evaluation", 128) >= 0.95
    assert max(evaluate.probe_accuracy(model, tokenizer, 300)) >= 0.95


def dictionary(assets: Path, layer: int) -> Dictionary:
    hook = saes.hook_name(layer)
    return load_dictionary(assets / "sae" / hook, Site.parse(hook))


@pytest.mark.parametrize("layer", LAYERS)
def test_saes(assets: Path, held_out: list[torch.Tensor], layer: int) -> None:
    quality = saes.quality(dictionary(assets, layer), held_out[layer])
    assert quality["explained_variance"] >= 0.9
    assert quality["l0"] <= 0.05 * saes.WIDTH


def test_saelens_reads_the_same_saes(assets: Path, held_out: list[torch.Tensor]) -> None:
    from sae_lens import SAE

    folder = assets / "sae" / saes.hook_name(1)
    sae = SAE.load_from_disk(folder)
    assert sae.cfg.metadata.hook_name == saes.hook_name(1)
    assert sae.cfg.normalize_activations == "none"
    data = held_out[1][:500]
    with torch.no_grad():
        latents = sae.encode(data)
        residue = data - sae.decode(latents)
    ours = saes.quality(dictionary(assets, 1), data)
    assert (latents > 0).sum(-1).float().mean().item() == pytest.approx(ours["l0"], abs=0.01)
    variance = (data - data.mean(0)).square().sum()
    explained = 1 - (residue.square().sum() / variance).item()
    assert explained == pytest.approx(ours["explained_variance"], abs=1e-4)


def test_quality_is_recorded(assets: Path) -> None:
    quality = json.loads((assets / "quality.json").read_text())
    assert all(v >= 0.95 for name, v in quality["accuracy"].items() if name.startswith("chat"))
    assert quality["minutes"] <= 45
