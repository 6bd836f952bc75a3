"""Tokenizers of the kinds that model families have, trained on the tasks' own text; no download.

What differs between them is what can go wrong in a prompt: whether there is a BOS and whether it is
the EOS too, who writes it, and where a space belongs to a token or is put before a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

from saebench_recovery.tasks._questions import Table, bank
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example
from saebench_recovery.targets.chat import PLAIN
from saebench_recovery.targets.knowledge import facts, neutral_texts
from saebench_recovery.targets.organism import world
from saebench_recovery.targets.presets import Preset, TaskPreset
from saebench_recovery.targets.target import Target
from tests.tiny import tiny_dictionary, tiny_model

SITE = Site.parse("blocks.1.hook_resid_post")
CONTEXT, TOKENS = 256, 3000
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A template each in the manner of the family: Gemma's and Llama's write the BOS, Qwen's has none.
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA2_CHAT = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@cache
def corpus() -> tuple[str, ...]:
    """Text of every task, and of what belongs to none."""

    def texts() -> Iterator[str]:
        for split in ("selection", "evaluation"):
            yield from (p.text for p in world.indirect_objects(split, 300))
            yield from (life.text for life in islice(world.biographies(split), 200))
        questions = bank(Table("plain-facts"), None, None, 64)
        for asked in (*questions.forget.values(), questions.retain):
            yield from (questions.layout.listed(q, (0, 1, 2, 3)) for q in asked)
        yield from (text.format(task="brew a tea") for text in world.load("requests")["phrasings"])
        yield from (f"{prompt}{answer}" for prompt, answer, _ in facts("general"))
        yield from neutral_texts("general")
        yield PLAIN

    return tuple(texts())


def _trained(splitter: Any, alphabet: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-pair encoding."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=alphabet, show_progress=False, min_frequency=2
    )
    made.train_from_iterator(corpus(), trainer)
    learned = json.loads(made.to_str())["model"]
    return learned["vocab"], [(left, right) for left, right in learned["merges"]]


@cache
def byte_level() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _trained(pre_tokenizers.ByteLevel(add_prefix_space=False), alphabet)


@cache
def metaspace() -> Any:
    """As SentencePiece learns it: a space stands at the start of a piece; the rest is bytes."""
    lines = pre_tokenizers.Split("\n", "isolated")
    spaces = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    alphabet = [*(chr(c) for c in range(33, 127)), "\n", "\u2581"]
    return _trained(pre_tokenizers.Sequence([lines, spaces]), [*BYTES, *alphabet])


def _gemma() -> Any:
    vocab, merges = metaspace()
    turns = ["<start_of_turn>", "<end_of_turn>"]
    return GemmaTokenizer(
        _with(vocab, "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *turns),
        merges,
        extra_special_tokens=turns,
        chat_template=GEMMA_CHAT,
    )


def _llama2() -> Any:
    """As its own file has it: a space is put before every text, even one that begins with one."""
    vocab, merges = metaspace()
    core = Tokenizer(
        models.BPE(
            _with(vocab, "<unk>", "<s>", "</s>"),
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _fast(core, "<s>", "</s>", LLAMA2_CHAT)


def _llama3() -> Any:
    vocab, merges = byte_level()
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    turns = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    core = Tokenizer(models.BPE(_with(vocab, bos, eos, *turns), merges, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([words, spelled])
    core.decoder = decoders.ByteLevel()
    return _fast(core, bos, eos, LLAMA3_CHAT, turns)


def _fast(core: Tokenizer, bos: str, eos: str, chat: str, more: list[str] | None = None) -> Any:
    """A tokenizer that adds a BOS by itself, as these do when nobody tells them not to."""
    core.add_special_tokens([bos, eos, *(more or [])])
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token=eos,
        extra_special_tokens=more or [],
        chat_template=chat,
    )


def _byte_level(kind: Any, *special: str, **more: Any) -> Any:
    vocab, merges = byte_level()
    return kind(_with(vocab, "<|endoftext|>", *special), merges, **more)


def _with(vocab: dict[str, int], *special: str) -> dict[str, int]:
    return vocab | {token: len(vocab) + i for i, token in enumerate(special)}


@dataclass(frozen=True)
class Family:
    """`bos`: what the target's preset says; `chat`: whether there is a template."""

    architecture: str
    tokenizer: Callable[[], Any]
    bos: bool = True
    chat: bool = True


FAMILIES = {
    "gpt2": Family("gpt2", lambda: _byte_level(GPT2Tokenizer), bos=False, chat=False),
    "pythia": Family("neox", lambda: _byte_level(GPTNeoXTokenizer, "<|padding|>"), chat=False),
    "qwen2": Family(
        "qwen2",
        lambda: _byte_level(
            Qwen2Tokenizer,
            "<|im_start|>",
            "<|im_end|>",
            extra_special_tokens=["<|im_start|>", "<|im_end|>"],
            chat_template=QWEN_CHAT,
        ),
    ),
    "llama2": Family("llama", _llama2),
    "llama3": Family("llama", _llama3),
    "gemma2": Family("gemma2", _gemma),
    "gemma3": Family("gemma3", _gemma),
}


@dataclass(frozen=True, eq=False)
class Recorder(Target):
    """A target that remembers the texts its prompts and answers were made from."""

    prompts: dict[tuple[int, ...], str] = field(default_factory=dict)
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def encode(self, text: str) -> tuple[int, ...]:
        ids = super().encode(text)
        self.prompts[ids] = text
        return ids

    def example(self, id: str, prompt: str, candidates: Any, **more: Any) -> Example:
        wrong = [more["wrong"]] if more.get("wrong") else []
        self.answers[id] = (*candidates, *wrong)
        return super().example(id, prompt, candidates, **more)


def family_target(family: Family, tokenizer: Any = None) -> Recorder:
    """A tiny random model of the family, with its tokenizer (or another)."""
    read = tokenizer or family.tokenizer()
    site = TaskPreset(site=str(SITE))
    return Recorder(
        family.architecture,
        tiny_model(family.architecture, vocabulary=len(read), context=CONTEXT),
        read,
        {SITE: tiny_dictionary(SITE)},
        Preset(description="", model="", saes={}, bos=family.bos, tasks={"refusal": site}),
        neutral_texts("general"),
        facts("general"),
    )
