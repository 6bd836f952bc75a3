"""Tokens that are no text: what a tokenizer declares, and which of it collects attention."""

from __future__ import annotations

from typing import Any

_NAMED = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
# Turn marks are not among them: a chat model's answer begins at one, and a defense acts there.
_SINKS = ("bos", "cls", "pad")


def special_ids(tokenizer: Any, model: Any = None) -> frozenset[int]:
    """Every token that is declared special, by name, in a list or in the vocabulary itself.

    Some tokenizers, such as Llama 3's, name three of them and mark the other 250 only in their
    added vocabulary (`added_tokens_decoder`); some models declare a further end of their answers.
    """
    found = {*tokenizer.all_special_ids, *_ids_of(tokenizer, _NAMED)}
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    found |= {token for token, said in added.items() if said.special}
    for config in (getattr(model, name, None) for name in ("config", "generation_config")):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            declared = getattr(config, name, None)
            found |= {*(declared if isinstance(declared, list | tuple) else [declared])}
    return frozenset(token for token in found if isinstance(token, int) and token >= 0)


def sink_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that begin or fill a row: like its first position, they carry outliers, no text."""
    return frozenset(_ids_of(tokenizer, _SINKS))


def _ids_of(tokenizer: Any, names: tuple[str, ...]) -> set[int]:
    found = (getattr(tokenizer, f"{name}_token_id", None) for name in names)
    return {token for token in found if token is not None}
