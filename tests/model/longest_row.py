"""Tiny models whose rotary frequencies are computed anew where a row is long."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

SIZE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def by_longest_row(kind: str) -> Any:
    """Positions that depend on the longest row of a batch, past 24 tokens."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    rope["original_max_position_embeddings"] = 24
    if kind == "dynamic":
        return LlamaForCausalLM(LlamaConfig(**SIZE, rope_parameters=rope))
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return Phi3ForCausalLM(
        Phi3Config(**SIZE, original_max_position_embeddings=24, rope_parameters={**rope, **factors})
    )
